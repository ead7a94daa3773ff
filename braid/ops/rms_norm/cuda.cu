#include <algorithm>

#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/rms_norm/kernels.h"

namespace braid::cuda {
namespace {

constexpr int kKept = 4;  // vectors of a row that a thread keeps in registers

// One block, one row: read once (rows wider than 16 elements a thread are read again).
template <bool kAligned>
__global__ void rms_norm_kernel(RmsNormDims dims, const float* __restrict__ x,
                                const float* __restrict__ w, float* __restrict__ y,
                                float* __restrict__ rstd) {
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, width = dims.width;
  const int64_t vectors = (width + 3) / 4;
  const float* xi = x + dims.x_at(row);
  float* yi = y + row * width;
  const auto normalize = [&](float4 v, int64_t i, float r) {
    v = map4(v, [=](float e) { return e * r; });
    if (w != nullptr) {
      v = map4(v, load4<kAligned>(w, i, width), [](float e, float f) { return e * f; });
    }
    store4<kAligned>(v, yi, i, width);
  };

  float4 kept[kKept];
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = threadIdx.x + int64_t{k} * blockDim.x;
    kept[k] = i < vectors ? load4<kAligned>(xi, i, width) : float4{};
    squares = dot4(kept[k], kept[k], squares);
  }
  const int64_t rest = threadIdx.x + int64_t{kKept} * blockDim.x;
  for (int64_t i = rest; i < vectors; i += blockDim.x) {
    const float4 v = load4<kAligned>(xi, i, width);
    squares = dot4(v, v, squares);
  }
  squares = block_sum(squares, scratch);
  const float r = 1.0f / sqrtf(squares / static_cast<float>(width) + dims.eps);
  if (threadIdx.x == 0) rstd[row] = r;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = threadIdx.x + int64_t{k} * blockDim.x;
    if (i < vectors) normalize(kept[k], i, r);
  }
  for (int64_t i = rest; i < vectors; i += blockDim.x) {
    normalize(load4<kAligned>(xi, i, width), i, r);
  }
}

// dx = rstd (g - x rstd^2 mean(g x)) with g = dy w. One block, one row.
template <bool kAligned>
__global__ void rms_norm_dx_kernel(RmsNormDims dims, const float* __restrict__ x,
                                   const float* __restrict__ w, const float* __restrict__ rstd,
                                   const float* __restrict__ dy, float* __restrict__ dx) {
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, width = dims.width;
  const int64_t vectors = (width + 3) / 4;
  const float* xi = x + dims.x_at(row);
  const float* dyi = dy + dims.dy_at(row);
  const float r = rstd[row];
  const auto gradient = [&](int64_t i) {
    const float4 v = load4<kAligned>(dyi, i, width);
    if (w == nullptr) return v;
    return map4(v, load4<kAligned>(w, i, width), [](float e, float f) { return e * f; });
  };
  const auto store = [&](float4 g, float4 v, int64_t i, float pull) {
    store4<kAligned>(map4(g, v, [=](float ge, float ve) { return r * fmaf(-ve, pull, ge); }),
                     dx + row * width, i, width);
  };

  float4 g[kKept], v[kKept];
  float dot = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = threadIdx.x + int64_t{k} * blockDim.x;
    g[k] = i < vectors ? gradient(i) : float4{};
    v[k] = i < vectors ? load4<kAligned>(xi, i, width) : float4{};
    dot = dot4(g[k], v[k], dot);
  }
  const int64_t rest = threadIdx.x + int64_t{kKept} * blockDim.x;
  for (int64_t i = rest; i < vectors; i += blockDim.x) {
    dot = dot4(gradient(i), load4<kAligned>(xi, i, width), dot);
  }
  const float pull = block_sum(dot, scratch) / static_cast<float>(width) * r * r;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = threadIdx.x + int64_t{k} * blockDim.x;
    if (i < vectors) store(g[k], v[k], i, pull);
  }
  for (int64_t i = rest; i < vectors; i += blockDim.x) {
    store(gradient(i), load4<kAligned>(xi, i, width), i, pull);
  }
}

// partial[b, j] <- sum over the rows of block b, in order. A thread owns a column.
__global__ void rms_norm_dw_kernel(RmsNormDims dims, const float* __restrict__ x,
                                   const float* __restrict__ rstd, const float* __restrict__ dy,
                                   float* __restrict__ partial) {
  const int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= dims.width) return;
  for (int64_t block = blockIdx.y; block < dims.blocks(); block += gridDim.y) {
    const int64_t begin = block * RmsNormDims::kBlockRows;
    float sum = 0;
#pragma unroll 8
    for (int64_t k = 0; k < RmsNormDims::kBlockRows; ++k) {
      const int64_t row = begin + k;
      if (row < dims.rows) {
        sum = fmaf(dy[dims.dy_at(row) + j] * rstd[row], x[dims.x_at(row) + j], sum);
      }
    }
    partial[block * dims.width + j] = sum;
  }
}

// dw[j] <- sum of the blocks.
__global__ void rms_norm_combine_kernel(RmsNormDims dims, const float* __restrict__ partial,
                                        float* __restrict__ dw) {
  __shared__ float scratch[kSumLanes][32];
  const int64_t j = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const bool inside = j < dims.width;
  const float sum = column_sum(inside ? dims.blocks() : 0, scratch,
                               [=](int64_t block) { return partial[block * dims.width + j]; });
  if (inside && threadIdx.y == 0) dw[j] = sum;
}

}  // namespace

void rms_norm(void* queue, const RmsNormDims& dims, const float* x, const float* w, float* y,
              float* rstd) {
  if (dims.rows == 0) return;
  const auto blocks = static_cast<unsigned>(dims.rows);
  const int threads = threads_for_row(dims.width);
  const bool aligned = dims.width % 4 == 0 && aligned_rows(x, dims.x_stride) &&
                       aligned_rows(w, 0) && aligned_rows(y, 0);
  const auto kernel = aligned ? rms_norm_kernel<true> : rms_norm_kernel<false>;
  const cudaStream_t stream = Queue::from(queue).stream;
  BRAID_CUDA_CHECK(kernel<<<blocks, threads, 0, stream>>>(dims, x, w, y, rstd), cudaGetLastError());
}

void rms_norm_vjp(void* queue, const RmsNormDims& dims, const float* x, const float* w,
                  const float* rstd, const float* dy, float* dx, float* dw, float* partial) {
  const cudaStream_t stream = Queue::from(queue).stream;
  if (dims.rows > 0) {
    const auto blocks = static_cast<unsigned>(dims.rows);
    const int threads = threads_for_row(dims.width);
    const bool aligned = dims.width % 4 == 0 && aligned_rows(x, dims.x_stride) &&
                         aligned_rows(dy, dims.dy_stride) && aligned_rows(w, 0) &&
                         aligned_rows(dx, 0);
    const auto kernel = aligned ? rms_norm_dx_kernel<true> : rms_norm_dx_kernel<false>;
    BRAID_CUDA_CHECK(kernel<<<blocks, threads, 0, stream>>>(dims, x, w, rstd, dy, dx),
                     cudaGetLastError());
  }
  if (dw == nullptr) return;
  if (dims.rows > 0) {
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(dims.width, kThreads)),
                    static_cast<unsigned>(std::min<int64_t>(dims.blocks(), 65535)));
    BRAID_CUDA_CHECK(rms_norm_dw_kernel<<<grid, kThreads, 0, stream>>>(dims, x, rstd, dy, partial),
                     cudaGetLastError());
  }
  const auto blocks = static_cast<unsigned>(ceil_div(dims.width, 32));
  BRAID_CUDA_CHECK(
      rms_norm_combine_kernel<<<blocks, column_block(), 0, stream>>>(dims, partial, dw),
      cudaGetLastError());
}

}  // namespace braid::cuda
