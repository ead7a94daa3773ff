#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct LrpeDims {
  int64_t tokens, heads, dim;
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are dense
  const int64_t* positions;     // (T) on the host
};

/// Tokens whose share of d theta is summed up in order before the blocks are, in order.
inline constexpr int64_t kLrpeBlock = 32;

namespace cpu {

/// scratch: H d floats a worker.
void lrpe(ThreadPool& threads, const LrpeDims& dims, const float* x, const float* theta,
          float* scratch, float* y);
/// partial: (blocks of kLrpeBlock tokens, H d).
void lrpe_vjp(ThreadPool& threads, const LrpeDims& dims, const float* x, const float* theta,
              const float* dy, float* scratch, float* partial, float* dx, float* d_theta);

}  // namespace cpu
}  // namespace braid
