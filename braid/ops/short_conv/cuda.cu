// A thread owns a channel and walks the tokens of a tile in order with the last inputs in
// registers, so that x is read once. The window is as long as a compile-time bound, which is the
// width itself up to 4; a shorter filter leaves its oldest places unused.

#include <algorithm>
#include <type_traits>

#include "braid/cuda/check.h"
#include "braid/cuda/queue.h"
#include "braid/cuda/row.cuh"
#include "braid/ops/short_conv/kernels.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kTile = ShortConvVjpDims::kTile;
constexpr int kExactWidth = 4;  // the largest that has kernels of its own
constexpr int kAhead = 8;       // tokens that are read together

__device__ __forceinline__ int64_t channel_of_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// The sequence that owns packed row t: the last s with offsets[s] <= t (empty ones own none).
__device__ int64_t sequence_of(const ShortConvDims& dims, int64_t t) {
  int64_t low = 0, high = dims.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (dims.offsets[middle] <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Channel c of token t >= -(W - 1), counted from the first of sequence s.
__device__ __forceinline__ float input(const ShortConvDims& dims, const float* x, const float* h0,
                                       int64_t s, int64_t t, int64_t c) {
  if (t >= 0) return x[(dims.offsets[s] + t) * dims.x_stride + c];
  return h0 == nullptr ? 0.0f : h0[(dims.width - 1 + t) * dims.channels + c];
}

// Places that the filter does not use, the oldest ones: known at compile time for exact widths.
template <int kMax>
__device__ __forceinline__ int unused(const ShortConvDims& dims) {
  return kMax <= kExactWidth ? 0 : kMax - static_cast<int>(dims.width);
}

// The taps of one channel and the inputs they meet, oldest first; place kMax - 1 is the newest.
template <int kMax>
struct Filter {
  float w[kMax], x[kMax], bias;

  __device__ Filter(const ShortConvDims& dims, const float* from, const float* from_bias,
                    int64_t c) {
    bias = from_bias == nullptr ? 0.0f : from_bias[c];
#pragma unroll
    for (int k = 0; k < kMax; ++k) {
      const int tap = k - unused<kMax>(dims);
      w[k] = tap >= 0 ? from[c * dims.width + tap] : 0.0f;
      x[k] = 0.0f;
    }
  }

  // The inputs before token t.
  __device__ void start(const ShortConvDims& dims, const float* from, const float* h0, int64_t s,
                        int64_t t, int64_t c) {
#pragma unroll
    for (int k = 1; k < kMax; ++k) {
      const bool used = k > unused<kMax>(dims);
      x[k] = used ? input(dims, from, h0, s, t - (kMax - k), c) : 0.0f;
    }
  }
  __device__ __forceinline__ void push(float newest) {
#pragma unroll
    for (int k = 0; k + 1 < kMax; ++k) x[k] = x[k + 1];
    x[kMax - 1] = newest;
  }
  // bias + sum_k w[k] x[k]: one chain, oldest first. Places before the filter are skipped, not
  // multiplied by zero, so that an infinite input stays where it is.
  __device__ __forceinline__ float convolve(const ShortConvDims& dims) const {
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kMax; ++k) {
      if (k >= unused<kMax>(dims)) sum = fmaf(w[k], x[k], sum);
    }
    return sum;
  }
};

// The next tokens of a channel, of which `count` are left: the loads do not wait for one another.
__device__ __forceinline__ void read_ahead(const float* from, int64_t stride, int64_t count,
                                           float (&to)[kAhead]) {
#pragma unroll
  for (int i = 0; i < kAhead; ++i) to[i] = i < count ? from[i * stride] : 0.0f;
}

// y for the tokens of tile blockIdx.y, channel by thread.
template <int kMax>
__global__ void short_conv_kernel(ShortConvDims dims, const float* __restrict__ x,
                                  const float* __restrict__ w, const float* __restrict__ bias,
                                  const float* const* __restrict__ h0, float* __restrict__ y) {
  const int64_t c = channel_of_thread();
  if (c >= dims.channels) return;
  Filter<kMax> filter(dims, w, bias, c);
  for (int64_t tile = blockIdx.y; tile * kTile < dims.tokens; tile += gridDim.y) {
    const int64_t tile_end = min((tile + 1) * kTile, dims.tokens);
    int64_t s = sequence_of(dims, tile * kTile);
    for (int64_t t = tile * kTile; t < tile_end; ++s) {
      const int64_t end = min(tile_end, dims.offsets[s + 1]);
      if (t >= end) continue;  // an empty sequence
      filter.start(dims, x, h0[s], s, t - dims.offsets[s], c);
      for (; t < end; t += kAhead) {
        float next[kAhead];
        read_ahead(x + t * dims.x_stride + c, dims.x_stride, end - t, next);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (t + i >= end) break;
          filter.push(next[i]);
          const float sum = filter.convolve(dims);
          y[(t + i) * dims.y_stride + c] = dims.silu ? sum * sigmoid(sum) : sum;
        }
      }
      t = end;
    }
  }
}

// ht[s] <- the last W - 1 inputs. Oldest first: in place, row j is written before only rows > j are
// read.
__global__ void short_conv_state_kernel(ShortConvDims dims, const float* __restrict__ x,
                                        const float* const* h0, float* const* ht) {
  const int64_t c = channel_of_thread();
  if (c >= dims.channels) return;
  for (int64_t s = blockIdx.y; s < dims.sequences; s += gridDim.y) {
    if (ht[s] == nullptr) continue;
    const int64_t length = dims.offsets[s + 1] - dims.offsets[s], before = dims.width - 1;
    for (int64_t j = 0; j < before; ++j) {
      ht[s][j * dims.channels + c] = input(dims, x, h0[s], s, length - before + j, c);
    }
  }
}

struct Vjp {
  ShortConvVjpDims dims;
  const float *x, *w, *bias, *dy;
  const float* const* h0;
  const float* const* g_final;
  float* const* g_initial;
  float* dx;
};

// The gradient before the activation, for the token that the filter's window ends with.
template <int kMax>
__device__ __forceinline__ float before_activation(const ShortConvDims& dims,
                                                   const Filter<kMax>& filter, float dy) {
  if (!dims.silu) return dy;
  const float sum = filter.convolve(dims), s = sigmoid(sum);
  return dy * (s * fmaf(sum, 1.0f - s, 1.0f));
}

// The taps, and the gradients of the last tokens; place kMax - 1 is the newest. Together they give
// the gradient of the input that the oldest of W tokens ends its window with.
template <int kMax>
struct Readers {
  float taps[kMax], g[kMax] = {};

  __device__ Readers(const ShortConvDims& dims, const float* w, int64_t c) {
#pragma unroll
    for (int k = 0; k < kMax; ++k) {
      taps[k] = k < kMax - unused<kMax>(dims) ? w[c * dims.width + k] : 0.0f;
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int k = 0; k < kMax; ++k) g[k] = 0.0f;
  }
  __device__ __forceinline__ void push(float newest) {
#pragma unroll
    for (int k = 0; k + 1 < kMax; ++k) g[k] = g[k + 1];
    g[kMax - 1] = newest;
  }
  // d of input t of a sequence whose last inputs have the gradient `final_state`, or none: tap k is
  // read by token t + W - 1 - k.
  __device__ __forceinline__ float input_gradient(const ShortConvDims& dims,
                                                  const float* final_state, int64_t t,
                                                  int64_t length, int64_t c) const {
    const int64_t kept = t - (length - (dims.width - 1));
    float sum = final_state == nullptr || kept < 0 ? 0.0f : final_state[kept * dims.channels + c];
#pragma unroll
    for (int k = 0; k < kMax; ++k) {
      if (k < kMax - unused<kMax>(dims)) sum = fmaf(taps[k], g[kMax - 1 - k], sum);
    }
    return sum;
  }
};

// Both windows of one channel, which walk over the tokens of a sequence together.
template <int kMax>
struct Walk {
  Filter<kMax> filter;
  Readers<kMax> readers;

  __device__ Walk(const Vjp& a, int64_t c)
      : filter(a.dims.base, a.w, a.bias, c), readers(a.dims.base, a.w, c) {}
  // Before token t of sequence s.
  __device__ void start(const Vjp& a, int64_t s, int64_t t, int64_t c) {
    filter.start(a.dims.base, a.x, a.h0[s], s, t, c);
    readers.clear();
  }
  // The next token's gradient before the activation; zero beyond the sequence.
  __device__ __forceinline__ float push(const ShortConvDims& dims, bool inside, float x, float dy) {
    float newest = 0;
    if (inside) {
      filter.push(x);
      newest = before_activation(dims, filter, dy);
    }
    readers.push(newest);
    return newest;
  }
};

template <int kMax>
__global__ void short_conv_vjp_kernel(Vjp a) {
  const ShortConvDims& dims = a.dims.base;
  const int64_t c = channel_of_thread(), before = dims.width - 1;
  if (c >= dims.channels) return;
  Walk<kMax> walk(a, c);
  for (int64_t tile = blockIdx.y; tile * kTile < dims.tokens; tile += gridDim.y) {
    float dw[kMax] = {}, dbias = 0;
    const int64_t tile_end = min((tile + 1) * kTile, dims.tokens);
    int64_t s = sequence_of(dims, tile * kTile);
    for (int64_t begin = tile * kTile; begin < tile_end; ++s) {
      const int64_t first = dims.offsets[s], last = dims.offsets[s + 1];
      const int64_t end = min(tile_end, last);
      if (begin >= end) continue;
      walk.start(a, s, begin - first, c);
      const float* final_state = a.g_final[s];
      // W - 1 tokens beyond the tile: they read its inputs.
      for (int64_t group = begin; group < end + before; group += kAhead) {
        float x[kAhead], dy[kAhead];
        read_ahead(a.x + group * dims.x_stride + c, dims.x_stride, last - group, x);
        read_ahead(a.dy + group * a.dims.dy_stride + c, a.dims.dy_stride, last - group, dy);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int64_t t = group + i, done = t - before;
          if (t >= end + before) break;
          const float newest = walk.push(dims, t < last, x[i], dy[i]);
          if (t < end) {
            dbias += newest;
#pragma unroll
            for (int k = 0; k < kMax; ++k) dw[k] = fmaf(newest, walk.filter.x[k], dw[k]);
          }
          if (done >= begin) {
            a.dx[done * dims.channels + c] =
                walk.readers.input_gradient(dims, final_state, done - first, last - first, c);
          }
        }
      }
      begin = end;
    }
    float* partial = a.dims.partial + tile * (dims.width + 1) * dims.channels + c;
#pragma unroll
    for (int k = 0; k < kMax; ++k) {
      const int tap = k - unused<kMax>(dims);
      if (tap >= 0) partial[tap * dims.channels] = dw[k];
    }
    partial[dims.width * dims.channels] = dbias;
  }
}

// g_initial[s] <- d of the W - 1 inputs before sequence s.
template <int kMax>
__global__ void short_conv_initial_kernel(Vjp a) {
  const ShortConvDims& dims = a.dims.base;
  const int64_t c = channel_of_thread(), before = dims.width - 1;
  if (c >= dims.channels) return;
  Walk<kMax> walk(a, c);
  for (int64_t s = blockIdx.y; s < dims.sequences; s += gridDim.y) {
    if (a.g_initial[s] == nullptr) continue;
    const int64_t first = dims.offsets[s], length = dims.offsets[s + 1] - first;
    walk.start(a, s, 0, c);
    for (int64_t t = 0; t < before; ++t) {
      const bool inside = t < length;
      walk.push(dims, inside, inside ? a.x[(first + t) * dims.x_stride + c] : 0.0f,
                inside ? a.dy[(first + t) * a.dims.dy_stride + c] : 0.0f);
      a.g_initial[s][t * dims.channels + c] =
          walk.readers.input_gradient(dims, a.g_final[s], t - before, length, c);
    }
  }
}

// dw and dbias: the sums of the tiles' parts.
__global__ void short_conv_combine_kernel(ShortConvVjpDims dims, float* __restrict__ dw,
                                          float* __restrict__ dbias) {
  __shared__ float scratch[kSumLanes][32];
  const int64_t channels = dims.base.channels, width = dims.base.width;
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const int64_t tap = blockIdx.y;
  const bool inside = c < channels && (tap < width || dbias != nullptr);
  const float sum = column_sum(inside ? dims.tiles() : 0, scratch, [=](int64_t tile) {
    return dims.partial[(tile * (width + 1) + tap) * channels + c];
  });
  if (!inside || threadIdx.y > 0) return;
  if (tap < width) {
    dw[c * width + tap] = sum;
  } else {
    dbias[c] = sum;
  }
}

// Blocks along x cover the channels, blocks along y step over `rows`.
dim3 grid_for(const ShortConvDims& dims, int64_t rows) {
  return dim3(static_cast<unsigned>(ceil_div(dims.channels, kThreads)),
              static_cast<unsigned>(std::clamp<int64_t>(rows, 1, 65535)));
}

// Calls `launch` with the kernels' bound for this width, as a constant.
template <class F>
void with_bound(int64_t width, F launch) {
  static_assert(kShortConvMaxWidth == 16 && kExactWidth == 4);
  if (width == 2) return launch(std::integral_constant<int, 2>());
  if (width == 3) return launch(std::integral_constant<int, 3>());
  if (width == 4) return launch(std::integral_constant<int, 4>());
  launch(std::integral_constant<int, 16>());
}

template <int kMax>
void launch_vjp(cudaStream_t stream, const Vjp& a) {
  const ShortConvDims& dims = a.dims.base;
  BRAID_CUDA_CHECK(short_conv_vjp_kernel<kMax>
                   <<<grid_for(dims, a.dims.tiles()), kThreads, 0, stream>>>(a),
                   cudaGetLastError());
  BRAID_CUDA_CHECK(short_conv_initial_kernel<kMax>
                   <<<grid_for(dims, dims.sequences), kThreads, 0, stream>>>(a),
                   cudaGetLastError());
}

}  // namespace

void short_conv(void* queue, const ShortConvDims& dims, const float* x, const float* w,
                const float* bias, const float* const* h0, float* const* ht, float* y) {
  if (dims.sequences == 0 || dims.channels == 0) return;
  const cudaStream_t stream = Queue::from(queue).stream;
  with_bound(dims.width, [&](auto bound) {
    const auto kernel = short_conv_kernel<decltype(bound)::value>;
    BRAID_CUDA_CHECK(kernel<<<grid_for(dims, ceil_div(dims.tokens, kTile)), kThreads, 0, stream>>>(
                         dims, x, w, bias, h0, y),
                     cudaGetLastError());
  });
  BRAID_CUDA_CHECK(short_conv_state_kernel<<<grid_for(dims, dims.sequences), kThreads, 0, stream>>>(
                       dims, x, h0, ht),
                   cudaGetLastError());
}

void short_conv_vjp(void* queue, const ShortConvVjpDims& dims, const float* x, const float* w,
                    const float* bias, const float* dy, const float* const* h0,
                    const float* const* g_final, float* const* g_initial, float* dx, float* dw,
                    float* dbias) {
  if (dims.base.channels == 0) return;
  const cudaStream_t stream = Queue::from(queue).stream;
  const Vjp a{dims, x, w, bias, dy, h0, g_final, g_initial, dx};
  if (dims.base.sequences > 0) {
    with_bound(dims.base.width, [&](auto bound) { launch_vjp<decltype(bound)::value>(stream, a); });
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(dims.base.channels, 32)),
                  static_cast<unsigned>(dims.base.width + 1));
  BRAID_CUDA_CHECK(short_conv_combine_kernel<<<grid, column_block(), 0, stream>>>(dims, dw, dbias),
                   cudaGetLastError());
}

}  // namespace braid::cuda
