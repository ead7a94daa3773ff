#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct SoftplusDecayDims {
  int64_t tokens, heads;
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are dense
};

namespace cpu {

/// rate (H) <- -exp(a_log), which the vjp reads.
void softplus_decay(ThreadPool& threads, const SoftplusDecayDims& dims, const float* x,
                    const float* a_log, const float* bias, float* rate, float* y);
void softplus_decay_vjp(ThreadPool& threads, const SoftplusDecayDims& dims, const float* x,
                        const float* bias, const float* rate, const float* y, const float* dy,
                        float* dx, float* d_a_log, float* d_bias);

}  // namespace cpu
}  // namespace braid
