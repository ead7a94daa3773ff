#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Element strides between rows; what an op makes itself is dense.
struct SineDims {
  int64_t rows, width, x_stride, dy_stride = 0;
};

namespace cpu {

/// y (N, F)
void sine(ThreadPool& threads, const SineDims& dims, const float* x, const float* frequency,
          float* y);
/// dx (N, F), dfrequency (F)
void sine_vjp(ThreadPool& threads, const SineDims& dims, const float* x, const float* frequency,
              const float* dy, float* dx, float* dfrequency);

}  // namespace cpu
}  // namespace braid
