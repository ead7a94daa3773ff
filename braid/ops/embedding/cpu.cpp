#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/embedding/kernels.h"

namespace braid::cpu {

void embedding(ThreadPool& threads, const EmbeddingDims& dims, const int32_t* ids,
               const float* plain, const void* packed, float* y) {
  // A packed row is spread over its panel, a cache line to an input, so few rows are a task.
  threads.parallel_for(dims.m, plain != nullptr ? 64 : 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = y + i * dims.y_row;
      if (plain != nullptr) {
        std::copy_n(plain + ids[i] * dims.table.k, dims.table.k, to);
      } else {
        unpack_row(dims.table, packed, ids[i], to);
      }
    }
  });
}

void embedding_vjp(ThreadPool& threads, const EmbeddingDims& dims, const int32_t* ids,
                   const float* dy, float* dtable) {
  // A task owns a range of rows and looks for its ids: ids are few beside the rows to clear.
  const int64_t d = dims.table.k;
  const int64_t grain = std::max<int64_t>(512, (dims.table.n + 63) / 64);
  threads.parallel_for(dims.table.n, grain, [&](int64_t begin, int64_t end) {
    std::fill(dtable + begin * d, dtable + end * d, 0.0f);
    for (int64_t i = 0; i < dims.m; ++i) {
      if (ids[i] < begin || ids[i] >= end) continue;
      const float* from = dy + i * dims.y_row;
      float* to = dtable + ids[i] * d;
      for (int64_t j = 0; j < d; ++j) to[j] += from[j];
    }
  });
}

}  // namespace braid::cpu
