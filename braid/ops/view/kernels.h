#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Element strides between rows; `width` elements of each row are touched.
struct CopyRowsDims {
  int64_t rows, width, x_stride, y_stride;
};

namespace cpu {

/// y[i, :] <- x[i, :], or zero where x is null.
void copy_rows(ThreadPool& threads, const CopyRowsDims& dims, const float* x, float* y);
/// y[i, :] <- x[index[i], :]
void gather_rows(ThreadPool& threads, const CopyRowsDims& dims, const int64_t* index,
                 const float* x, float* y);
/// y[index[i], :] += x[i, :], in the order of i.
void scatter_add_rows(ThreadPool& threads, const CopyRowsDims& dims, const int64_t* index,
                      const float* x, float* y);

}  // namespace cpu
}  // namespace braid
