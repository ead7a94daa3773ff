#include <algorithm>

#include "braid/cuda/accumulate.h"
#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"

namespace braid::cuda {
namespace {

__global__ void accumulate_kernel(float* __restrict__ y, const float* __restrict__ x, int64_t n) {
  const int64_t stride = int64_t{blockDim.x} * gridDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    y[i] += x[i];
  }
}

}  // namespace

void accumulate(void* queue, float* y, const float* x, int64_t n) {
  constexpr int kThreads = 256;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((n + kThreads - 1) / kThreads, 65536));
  BRAID_CUDA_CHECK(accumulate_kernel<<<blocks, kThreads, 0, Queue::from(queue).stream>>>(y, x, n),
                   cudaGetLastError());
}

}  // namespace braid::cuda
