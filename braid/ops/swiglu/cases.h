#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct Swiglu {
  int64_t rows, width;
};

inline const std::vector<Swiglu> kSwigluTest = {{1, 1}, {3, 63}, {2, 64}, {5, 65}, {33, 1000}};
inline const std::vector<Swiglu> kSwigluBench = {{1, 5632}, {2048, 2048}, {4096, 11008}};

}  // namespace braid::cases
