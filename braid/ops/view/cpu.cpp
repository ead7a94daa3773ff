#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/view/kernels.h"

namespace braid::cpu {
namespace {

// Rows to a task, so that a task moves about 64 KiB.
int64_t rows_per_task(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

}  // namespace

void copy_rows(ThreadPool& threads, const CopyRowsDims& dims, const float* x, float* y) {
  threads.parallel_for(dims.rows, rows_per_task(dims.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = y + i * dims.y_stride;
      if (x == nullptr) {
        std::fill_n(to, dims.width, 0.0f);
      } else {
        std::copy_n(x + i * dims.x_stride, dims.width, to);
      }
    }
  });
}

void gather_rows(ThreadPool& threads, const CopyRowsDims& dims, const int64_t* index,
                 const float* x, float* y) {
  threads.parallel_for(dims.rows, rows_per_task(dims.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(x + index[i] * dims.x_stride, dims.width, y + i * dims.y_stride);
    }
  });
}

void scatter_add_rows(ThreadPool& threads, const CopyRowsDims& dims, const int64_t* index,
                      const float* x, float* y) {
  // Split over columns: two rows may go to the same place.
  threads.parallel_for(dims.width, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < dims.rows; ++i) {
      const float* from = x + i * dims.x_stride;
      float* to = y + index[i] * dims.y_stride;
      for (int64_t j = begin; j < end; ++j) to[j] += from[j];
    }
  });
}

}  // namespace braid::cpu
