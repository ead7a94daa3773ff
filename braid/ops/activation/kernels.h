#pragma once

#include <cstdint>

#include "braid/ops/activation/activation.h"

namespace braid {

struct ActivationDims {
  int64_t rows, width;
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are contiguous
  Activation kind;
};

namespace cpu {

/// y <- f(x)
void activation(ThreadPool& threads, const ActivationDims& dims, const float* x, float* y);
/// dx <- f'(x) dy
void activation_vjp(ThreadPool& threads, const ActivationDims& dims, const float* x,
                    const float* dy, float* dx);
/// Rows [begin, end), on the calling thread: the value where dy is null, otherwise dy times the
/// slope.
void activation_rows(const ActivationDims& dims, int64_t begin, int64_t end, const float* x,
                     const float* dy, float* out);

}  // namespace cpu
}  // namespace braid
