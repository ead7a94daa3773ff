#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct RmsNorm {
  int64_t rows, width;
};

inline const std::vector<RmsNorm> kRmsNormTest = {{1, 1},   {1, 63},  {3, 64},   {2, 65},
                                                  {33, 17}, {70, 31}, {5, 1000}, {2, 4099}};
inline const std::vector<RmsNorm> kRmsNormBench = {{1, 2048}, {2048, 768}, {4096, 4096}};

}  // namespace braid::cases
