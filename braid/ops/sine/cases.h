#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct Sine {
  int64_t rows, width;
};

inline const std::vector<Sine> kSineTest = {{1, 1}, {3, 63}, {2, 64}, {5, 65}, {70, 130}};
inline const std::vector<Sine> kSineBench = {{8192, 64}};

}  // namespace braid::cases
