#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct GeluDims {
  int64_t rows, width;
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are contiguous
  bool use_tanh;
};

namespace cpu {

void gelu(ThreadPool& threads, const GeluDims& dims, const float* x, float* y);
void gelu_vjp(ThreadPool& threads, const GeluDims& dims, const float* x, const float* dy,
              float* dx);
/// Rows [begin, end), on the calling thread: the value where dy is null, otherwise dy times the
/// slope.
void gelu_rows(const GeluDims& dims, int64_t begin, int64_t end, const float* x, const float* dy,
               float* out);

}  // namespace cpu
}  // namespace braid
