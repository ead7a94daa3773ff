#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct Gelu {
  int64_t rows, width;
};

inline const std::vector<Gelu> kGeluTest = {{1, 1}, {3, 63}, {2, 64}, {5, 65}, {33, 1000}};
inline const std::vector<Gelu> kGeluBench = {{1, 4096}, {2048, 3072}, {4096, 16384}};

}  // namespace braid::cases
