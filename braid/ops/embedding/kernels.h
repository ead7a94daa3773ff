#pragma once

#include <cstdint>

#include "braid/ops/linear/kernels.h"

namespace braid {

struct EmbeddingDims {
  int64_t m;           // ids
  PackedMatrix table;  // (V, D)
  int64_t y_row;       // between rows of y, or of dy
};

namespace cpu {

/// `ids` are in range. `plain` (V, D) is read where it is not null, `packed` elsewhere.
void embedding(ThreadPool& threads, const EmbeddingDims& dims, const int32_t* ids,
               const float* plain, const void* packed, float* y);
/// dtable (V, D), contiguous: zero but for dtable[ids[i]] += dy[i].
void embedding_vjp(ThreadPool& threads, const EmbeddingDims& dims, const int32_t* ids,
                   const float* dy, float* dtable);

}  // namespace cpu

namespace cuda {

/// As on the CPU, on a queue; `ids` lie on the device and `packed` is a plain matrix.
void embedding(void* queue, const EmbeddingDims& dims, const int32_t* ids, const float* plain,
               const void* packed, float* y);
void embedding_vjp(void* queue, const EmbeddingDims& dims, const int32_t* ids, const float* dy,
                   float* dtable);

}  // namespace cuda
}  // namespace braid
