#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct L2NormCase {
  int64_t rows, heads, size;
};

inline const std::vector<L2NormCase> kL2NormTest = {{1, 1, 1},  {3, 2, 7},   {5, 1, 63},
                                                    {2, 3, 64}, {40, 2, 65}, {0, 2, 8}};
inline const std::vector<L2NormCase> kL2NormBench = {{2048, 16, 128}, {1, 16, 128}};

}  // namespace braid::cases
