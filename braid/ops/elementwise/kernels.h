#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Element strides between rows.
struct ElementwiseDims {
  int64_t rows, width, a_stride, b_stride, y_stride;
};

namespace cpu {

/// y <- a + b; y may be a.
void add(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
         float* y);
/// y <- s a
void scale(ThreadPool& threads, const ElementwiseDims& dims, float s, const float* a, float* y);

/// y <- a b
void multiply(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
              float* y);

/// y <- s a, s (rows)
void scale_rows(ThreadPool& threads, const ElementwiseDims& dims, const float* s, const float* a,
                float* y);
/// y (rows) <- the inner products of the rows of a and b
void row_products(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
                  float* y);

}  // namespace cpu
}  // namespace braid
