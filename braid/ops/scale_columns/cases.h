#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/scale_columns/scale_columns.h"

namespace braid::cases {

struct ScaleColumnsCase {
  int64_t rows;
  std::vector<ColumnScale> segments;
};

inline const std::vector<ScaleColumnsCase> kScaleColumnsTest = {
    {1, {{1, 0.5f}}},
    {3, {{63, 2.0f}, {1, -1.0f}, {65, 0.3f}}},
    {40, {{128, 0.5f}, {128, 0.6f}, {16, 0.7f}, {16, 0.8f}, {8, 1.3f}}},
    {2, {{7, 1.0f}, {0, 9.0f}, {64, 0.0f}}}};
// The projection of Falcon-H1 1.5B, decode and prefill.
inline const std::vector<ScaleColumnsCase> kScaleColumnsBench = {
    {1, {{3072, 0.5f}, {3072, 0.6f}, {256, 0.7f}, {256, 0.8f}, {48, 1.3f}}},
    {2048, {{3072, 0.5f}, {3072, 0.6f}, {256, 0.7f}, {256, 0.8f}, {48, 1.3f}}}};

}  // namespace braid::cases
