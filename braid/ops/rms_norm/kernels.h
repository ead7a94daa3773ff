#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct RmsNormDims {
  int64_t rows, width;
  int64_t x_stride, dy_stride;  // elements between runs of rows; y and dx are contiguous
  float eps;
  int64_t run = 1;  // rows that lie end to end
  constexpr int64_t at(int64_t row, int64_t stride) const {
    return run == 1 ? row * stride : row / run * stride + row % run * width;
  }
  constexpr int64_t x_at(int64_t row) const { return at(row, x_stride); }
  constexpr int64_t dy_at(int64_t row) const { return at(row, dy_stride); }
  /// Rows whose contributions to dw are added up first; then the blocks are, in a fixed order.
  static constexpr int64_t kBlockRows = 32;
  constexpr int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
};

namespace cpu {

/// `w` may be null. Writes y (rows, width) and rstd (rows).
void rms_norm(ThreadPool& threads, const RmsNormDims& dims, const float* x, const float* w,
              float* y, float* rstd);
/// Writes dx, and dw where it is not null; `partial` is scratch of (blocks, width).
void rms_norm_vjp(ThreadPool& threads, const RmsNormDims& dims, const float* x, const float* w,
                  const float* rstd, const float* dy, float* dx, float* dw, float* partial);

}  // namespace cpu

namespace cuda {

/// As on the CPU, on a queue.
void rms_norm(void* queue, const RmsNormDims& dims, const float* x, const float* w, float* y,
              float* rstd);
void rms_norm_vjp(void* queue, const RmsNormDims& dims, const float* x, const float* w,
                  const float* rstd, const float* dy, float* dx, float* dw, float* partial);

}  // namespace cuda
}  // namespace braid
