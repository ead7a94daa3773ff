#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct CrossEntropy {
  int64_t rows, classes;
};

inline const std::vector<CrossEntropy> kCrossEntropyTest = {{1, 1}, {3, 63}, {7, 65}, {5, 5003}};
inline const std::vector<CrossEntropy> kCrossEntropyBench = {{512, 256}, {512, 50280}};

}  // namespace braid::cases
