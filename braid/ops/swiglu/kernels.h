#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct SwigluDims {
  int64_t rows, width;          // width is F
  int64_t x_stride, dy_stride;  // elements between rows; y and dx are contiguous
};

namespace cpu {

/// x (rows, 2 width) -> y (rows, width)
void swiglu(ThreadPool& threads, const SwigluDims& dims, const float* x, float* y);
/// dy (rows, width) -> dx (rows, 2 width)
void swiglu_vjp(ThreadPool& threads, const SwigluDims& dims, const float* x, const float* dy,
                float* dx);
/// Rows [begin, end) of each, on the calling thread.
void swiglu_rows(const SwigluDims& dims, int64_t begin, int64_t end, const float* x, float* y);
void swiglu_rows_vjp(const SwigluDims& dims, int64_t begin, int64_t end, const float* x,
                     const float* dy, float* dx);

}  // namespace cpu

namespace cuda {

/// As on the CPU, on a queue.
void swiglu(void* queue, const SwigluDims& dims, const float* x, float* y);
void swiglu_vjp(void* queue, const SwigluDims& dims, const float* x, const float* dy, float* dx);

}  // namespace cuda
}  // namespace braid
