#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct Elementwise {
  int64_t rows, width;
};

inline const std::vector<Elementwise> kElementwiseTest = {
    {1, 1}, {3, 63}, {2, 64}, {5, 65}, {40, 1000}};
inline const std::vector<Elementwise> kElementwiseBench = {{1, 4096}, {2048, 768}, {4096, 4096}};

}  // namespace braid::cases
