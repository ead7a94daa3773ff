#include <algorithm>

#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/swiglu/kernels.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// Blocks along x cover a row, blocks along y step over rows.
template <bool kAligned>
__global__ void swiglu_kernel(SwigluDims dims, const float* __restrict__ x, float* __restrict__ y) {
  const int64_t width = dims.width;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (4 * i >= width) return;
  for (int64_t row = blockIdx.y; row < dims.rows; row += gridDim.y) {
    const float* gate = x + row * dims.x_stride;
    const float4 g = load4<kAligned>(gate, i, width), u = load4<kAligned>(gate + width, i, width);
    store4<kAligned>(map4(g, u, [](float ge, float ue) { return ge * sigmoid(ge) * ue; }),
                     y + row * width, i, width);
  }
}

template <bool kAligned>
__global__ void swiglu_vjp_kernel(SwigluDims dims, const float* __restrict__ x,
                                  const float* __restrict__ dy, float* __restrict__ dx) {
  const int64_t width = dims.width;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (4 * i >= width) return;
  for (int64_t row = blockIdx.y; row < dims.rows; row += gridDim.y) {
    const float* gate = x + row * dims.x_stride;
    float* dgate = dx + row * 2 * width;
    const float4 g = load4<kAligned>(gate, i, width), u = load4<kAligned>(gate + width, i, width);
    const float4 d = load4<kAligned>(dy + row * dims.dy_stride, i, width);
    const float4 s = map4(g, [](float e) { return sigmoid(e); });
    const float4 slope =
        map4(g, s, [](float ge, float se) { return se * fmaf(ge, 1.0f - se, 1.0f); });
    const auto times = [](float a, float b) { return a * b; };
    store4<kAligned>(map4(map4(d, u, times), slope, times), dgate, i, width);
    store4<kAligned>(map4(d, map4(g, s, times), times), dgate + width, i, width);
  }
}

dim3 grid_for(const SwigluDims& dims) {
  return dim3(static_cast<unsigned>(ceil_div(dims.width, 4 * kThreads)),
              static_cast<unsigned>(std::min<int64_t>(dims.rows, 65535)));
}

}  // namespace

void swiglu(void* queue, const SwigluDims& dims, const float* x, float* y) {
  if (dims.rows == 0) return;
  const bool aligned = dims.width % 4 == 0 && aligned_rows(x, dims.x_stride) && aligned_rows(y, 0);
  const auto kernel = aligned ? swiglu_kernel<true> : swiglu_kernel<false>;
  const cudaStream_t stream = Queue::from(queue).stream;
  BRAID_CUDA_CHECK(kernel<<<grid_for(dims), kThreads, 0, stream>>>(dims, x, y), cudaGetLastError());
}

void swiglu_vjp(void* queue, const SwigluDims& dims, const float* x, const float* dy, float* dx) {
  if (dims.rows == 0) return;
  const bool aligned = dims.width % 4 == 0 && aligned_rows(x, dims.x_stride) &&
                       aligned_rows(dy, dims.dy_stride) && aligned_rows(dx, 0);
  const auto kernel = aligned ? swiglu_vjp_kernel<true> : swiglu_vjp_kernel<false>;
  const cudaStream_t stream = Queue::from(queue).stream;
  BRAID_CUDA_CHECK(kernel<<<grid_for(dims), kThreads, 0, stream>>>(dims, x, dy, dx),
                   cudaGetLastError());
}

}  // namespace braid::cuda
