#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct L2NormDims {
  int64_t rows, heads, size;    // D = heads size
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are dense
  float scale, eps;
};

namespace cpu {

void l2_norm(ThreadPool& threads, const L2NormDims& dims, const float* x, float* y);
void l2_norm_vjp(ThreadPool& threads, const L2NormDims& dims, const float* x, const float* dy,
                 float* dx);

}  // namespace cpu
}  // namespace braid
