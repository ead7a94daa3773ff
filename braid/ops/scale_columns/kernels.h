#pragma once

#include <cstdint>

#include "braid/ops/scale_columns/scale_columns.h"

namespace braid {

struct ScaleColumnsDims {
  int64_t rows, width, x_stride;  // elements between rows; y is contiguous
  int64_t segments;
  ColumnScale of[kMaxColumnScales];
};

namespace cpu {

/// x (rows, width) -> y (rows, width)
void scale_columns(ThreadPool& threads, const ScaleColumnsDims& dims, const float* x, float* y);

}  // namespace cpu
}  // namespace braid
