#include <algorithm>

#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/embedding/kernels.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

template <bool kAligned>
__global__ void embedding_f32_kernel(EmbeddingDims dims, const int32_t* __restrict__ ids,
                                     const float* __restrict__ table, float* __restrict__ y) {
  const float* from = table + ids[blockIdx.x] * dims.table.k;
  float* to = y + blockIdx.x * dims.y_row;
  for (int64_t i = threadIdx.x; 4 * i < dims.table.k; i += blockDim.x) {
    store4<kAligned>(load4<kAligned>(from, i, dims.table.k), to, i, dims.table.k);
  }
}

__global__ void embedding_bf16_kernel(EmbeddingDims dims, const int32_t* __restrict__ ids,
                                      const BF16* __restrict__ table, float* __restrict__ y) {
  const BF16* from = table + ids[blockIdx.x] * dims.table.k;
  float* to = y + blockIdx.x * dims.y_row;
  for (int64_t j = threadIdx.x; j < dims.table.k; j += blockDim.x) {
    to[j] = __uint_as_float(uint32_t{from[j].bits} << 16);
  }
}

// One block per id of the batch. The first block of an id adds up the rows of all its occurrences,
// in order; the others leave. Ids are few beside the work of a step, so each block reads them all.
__global__ void embedding_vjp_kernel(EmbeddingDims dims, const int32_t* __restrict__ ids,
                                     const float* __restrict__ dy, float* __restrict__ dtable) {
  __shared__ int matches[kThreads];
  __shared__ int counts[kThreads / 32];
  const int64_t first = blockIdx.x, width = dims.table.k;
  const int32_t id = ids[first];
  int earlier = 0;
  for (int64_t i = threadIdx.x; i < first; i += kThreads) earlier |= ids[i] == id;
  if (__syncthreads_or(earlier)) return;

  float* to = dtable + id * width;
  for (int64_t base = first; base < dims.m; base += kThreads) {
    // The matching positions of these ids, in order.
    const int64_t i = base + threadIdx.x;
    const bool match = i < dims.m && ids[i] == id;
    const unsigned ballot = __ballot_sync(0xffffffffu, match);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) counts[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane) - 1)), total = 0;
    for (int k = 0; k < kThreads / 32; ++k) {
      if (k < warp) before += counts[k];
      total += counts[k];
    }
    if (match) matches[before] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (int64_t j = threadIdx.x; total > 0 && j < width; j += kThreads) {
      float sum = to[j];
      for (int k = 0; k < total; ++k) sum += dy[(base + matches[k]) * dims.y_row + j];
      to[j] = sum;
    }
    __syncthreads();  // before the next ids overwrite the matches
  }
}

}  // namespace

void embedding(void* queue, const EmbeddingDims& dims, const int32_t* ids, const float* plain,
               const void* packed, float* y) {
  if (dims.m == 0) return;
  const cudaStream_t stream = Queue::from(queue).stream;
  const auto blocks = static_cast<unsigned>(dims.m);
  if (plain == nullptr && dims.table.dtype == DType::kBF16) {
    BRAID_CUDA_CHECK(embedding_bf16_kernel<<<blocks, kThreads, 0, stream>>>(
                         dims, ids, static_cast<const BF16*>(packed), y),
                     cudaGetLastError());
    return;
  }
  const float* table = plain != nullptr ? plain : static_cast<const float*>(packed);
  const bool aligned =
      dims.table.k % 4 == 0 && aligned_rows(table, 0) && aligned_rows(y, dims.y_row);
  const auto kernel = aligned ? embedding_f32_kernel<true> : embedding_f32_kernel<false>;
  BRAID_CUDA_CHECK(kernel<<<blocks, kThreads, 0, stream>>>(dims, ids, table, y),
                   cudaGetLastError());
}

void embedding_vjp(void* queue, const EmbeddingDims& dims, const int32_t* ids, const float* dy,
                   float* dtable) {
  const cudaStream_t stream = Queue::from(queue).stream;
  const auto bytes = static_cast<size_t>(dims.table.n * dims.table.k) * sizeof(float);
  BRAID_CUDA_CHECK(cudaMemsetAsync(dtable, 0, bytes, stream));
  if (dims.m == 0) return;
  BRAID_CUDA_CHECK(embedding_vjp_kernel<<<static_cast<unsigned>(dims.m), kThreads, 0, stream>>>(
                       dims, ids, dy, dtable),
                   cudaGetLastError());
}

}  // namespace braid::cuda
