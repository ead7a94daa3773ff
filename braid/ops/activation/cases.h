#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct ActivationCase {
  int64_t rows, width;
};

inline const std::vector<ActivationCase> kActivationTest = {
    {1, 1}, {3, 63}, {2, 64}, {5, 65}, {33, 1000}};
inline const std::vector<ActivationCase> kActivationBench = {{1, 4096}, {2048, 3072}};

}  // namespace braid::cases
