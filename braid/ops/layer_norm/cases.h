#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct LayerNorm {
  int64_t rows, width;
};

inline const std::vector<LayerNorm> kLayerNormTest = {{1, 3},   {1, 63},  {3, 64},   {2, 65},
                                                      {33, 17}, {70, 31}, {5, 1000}, {2, 4099}};
inline const std::vector<LayerNorm> kLayerNormBench = {{1, 2048}, {2048, 768}, {4096, 4096}};

}  // namespace braid::cases
