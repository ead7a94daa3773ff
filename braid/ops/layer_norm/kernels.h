#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct LayerNormDims {
  int64_t rows, width;
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are contiguous
  float eps;
  /// Rows whose contributions to dw and db are added up first; then the blocks are, in order.
  static constexpr int64_t kBlockRows = 32;
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
};

namespace cpu {

/// `b` may be null. Writes y (rows, width) and stats (rows, 2): mean and rstd.
void layer_norm(ThreadPool& threads, const LayerNormDims& dims, const float* x, const float* w,
                const float* b, float* y, float* stats);
/// Writes dx and dwb (2, width): dw, then db. `partial` is scratch of (blocks, 2, width).
void layer_norm_vjp(ThreadPool& threads, const LayerNormDims& dims, const float* x, const float* w,
                    const float* stats, const float* dy, float* dx, float* dwb, float* partial);

}  // namespace cpu
}  // namespace braid
