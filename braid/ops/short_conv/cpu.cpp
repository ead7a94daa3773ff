// A task is one block of channels of one sequence (forward) or of all sequences (vjp, where the
// gradient of w sums over them in order). Rows of a block stay in the first-level cache; the cost
// is one exponential and W fused multiply-adds per element.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/short_conv/kernels.h"
#include "braid/simd/gemm.h"
#include "braid/simd/prefetch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/short_conv/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/simd/math-inl.h"
// clang-format on

#ifndef BRAID_OPS_SHORT_CONV_ARGUMENTS_
#define BRAID_OPS_SHORT_CONV_ARGUMENTS_
namespace braid::cpu {
namespace {

constexpr int64_t kMaxWidth = kShortConvMaxWidth;
constexpr int64_t kBlock = 128;  // channels to a task
// All channels of this many tokens are done before the next ones: every row lies on pages of its
// own, and those of one wave fit the table of translations.
constexpr int64_t kWave = 256;
// Tokens at a time: the rows that they share are loaded once.
constexpr int64_t kTokens = 4;

// The inputs of one sequence as a run of rows that begins W - 1 before its first token.
struct Window {
  const float* x;        // first token
  const float* initial;  // (W - 1, C) or null
  int64_t x_stride, channels, before;

  // Row of token t >= -(W - 1); null where it is zero.
  const float* row(int64_t t) const {
    if (t >= 0) return x + t * x_stride;
    return initial == nullptr ? nullptr : initial + (before + t) * channels;
  }
};

struct Forward {
  ShortConvDims dims;
  const float *x, *w, *bias;
  float* y;
};

struct Backward {
  ShortConvVjpDims dims;
  const float *x, *w, *bias, *dy;
  const float* const* h0;
  const float* const* g_final;
  float* const* g_initial;
  float *dx, *dw, *dbias;
};

Window window_of(const ShortConvDims& dims, const float* x, int64_t s, const float* h0) {
  return {.x = x + dims.offsets[s] * dims.x_stride,
          .initial = h0,
          .x_stride = dims.x_stride,
          .channels = dims.channels,
          .before = dims.width - 1};
}

}  // namespace
}  // namespace braid::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// The block's part of w, transposed to (W, block) and zero-padded, and of the bias.
struct Weights {
  HWY_ALIGN float w[kMaxWidth * kBlock];
  HWY_ALIGN float bias[kBlock];

  Weights(const ShortConvDims& dims, const float* from, const float* from_bias, int64_t c0,
          int64_t count) {
    if (count < kBlock) std::fill_n(w, dims.width * kBlock, 0.0f);
    simd::transpose(count, dims.width, from + c0 * dims.width, dims.width, w, kBlock);
    std::fill_n(bias, kBlock, 0.0f);
    if (from_bias != nullptr) std::copy_n(from_bias + c0, count, bias);
  }
};

// What rows that do not exist hold.
alignas(64) constexpr float kZeros[kBlock] = {};

// Channels from c0 on of row t.
HWY_INLINE const float* row_of(const Window& window, int64_t t, int64_t c0) {
  const float* row = window.row(t);
  return row == nullptr ? kZeros : row + c0;
}

// sum[j] <- bias + sum_k w[k] rows[j + k] for one vector of channels and kCount tokens; oldest
// first. kTaps is the width, 0 stands for one known at run time only.
template <int64_t kTaps, int64_t kCount, class Access>
HWY_INLINE void convolve(const Access& access, const Weights& weights, const float* const* rows,
                         int64_t width, size_t i, V (&sum)[kCount]) {
  const D d;
  const int64_t taps = kTaps == 0 ? width : kTaps;
  for (int64_t j = 0; j < kCount; ++j) sum[j] = hn::Load(d, weights.bias + i);
#pragma GCC unroll 4
  for (int64_t k = 0; k < taps; ++k) {
    const V w = hn::Load(d, weights.w + k * kBlock + i);
#pragma GCC unroll 4
    for (int64_t j = 0; j < kCount; ++j) {
      sum[j] = hn::MulAdd(w, access.load(rows[j + k] + i), sum[j]);
    }
  }
}

// kCount tokens from t on.
template <int64_t kTaps, int64_t kCount>
HWY_INLINE void forward_tokens(const ShortConvDims& dims, const Window& window,
                               const Weights& weights, int64_t t, int64_t c0, int64_t count,
                               float* y) {
  const float* rows[kMaxWidth + kCount - 1];
  for (int64_t k = 0; k < dims.width + kCount - 1; ++k) {
    rows[k] = row_of(window, t - window.before + k, c0);
  }
  const float* x = window.x + t * window.x_stride + c0;
  sv::for_each_vector(static_cast<size_t>(count), [&](auto access, size_t i) {
    V sum[kCount];
    convolve<kTaps>(access, weights, rows, dims.width, i, sum);
#pragma GCC unroll 4
    for (int64_t j = 0; j < kCount; ++j) {
      simd::prefetch_row_ahead(x + j * window.x_stride + i, window.x_stride);
      access.store(dims.silu ? sv::silu(sum[j]) : sum[j], y + j * dims.y_stride + i);
    }
  });
}

template <int64_t kTaps>
void forward_rows(const ShortConvDims& dims, const Window& window, const Weights& weights,
                  int64_t begin, int64_t end, int64_t c0, int64_t count, float* y) {
  int64_t t = begin;
  for (; t + kTokens <= end; t += kTokens) {
    forward_tokens<kTaps, kTokens>(dims, window, weights, t, c0, count, y + t * dims.y_stride);
  }
  for (; t < end; ++t) {
    forward_tokens<kTaps, 1>(dims, window, weights, t, c0, count, y + t * dims.y_stride);
  }
}

// Channels [c0, c0 + count) of one wave of sequence s.
void forward(const Forward& a, int64_t s, int64_t wave, int64_t c0, int64_t count, const float* h0,
             float* ht) {
  const ShortConvDims& dims = a.dims;
  const int64_t length = dims.offsets[s + 1] - dims.offsets[s], before = dims.width - 1;
  const Weights weights(dims, a.w, a.bias, c0, count);
  const Window window = window_of(dims, a.x, s, h0);
  const int64_t end = std::min(length, wave + kWave);
  float* y = a.y + dims.offsets[s] * dims.y_stride + c0;
  const auto rows = dims.width == 4 ? forward_rows<4> : forward_rows<0>;
  rows(dims, window, weights, wave, end, c0, count, y);
  if (ht == nullptr || end < length) return;
  // Oldest first: in place, row j is written before only rows > j are read.
  for (int64_t j = 0; j < before; ++j) {
    const float* from = window.row(length - before + j);
    float* to = ht + j * dims.channels + c0;
    if (from == nullptr) {
      std::fill_n(to, count, 0.0f);
    } else if (from + c0 != to) {
      std::copy_n(from + c0, count, to);
    }
  }
}

// One block of channels in the vjp: gradients before the activation of the last W tokens, in a
// ring, and the sums for dw and dbias.
struct BackwardBlock {
  HWY_ALIGN float ring[kMaxWidth * kBlock];
  HWY_ALIGN float dw[kMaxWidth * kBlock] = {};
  HWY_ALIGN float dbias[kBlock] = {};

  float* of(int64_t t, int64_t width) { return ring + t % width * kBlock; }
};

// d of the input row t, which the tokens t..t+W-1 of [0, length) read, and the final state too.
template <int64_t kTaps>
HWY_INLINE void input_gradient(const ShortConvDims& dims, const Weights& weights,
                               BackwardBlock& block, int64_t t, int64_t length,
                               const float* g_final, int64_t c0, int64_t count, float* dx) {
  const D d;
  const int64_t width = kTaps == 0 ? dims.width : kTaps;
  const int64_t before = width - 1, kept = t - (length - before);
  const float* from_final =
      g_final == nullptr || kept < 0 ? nullptr : g_final + kept * dims.channels + c0;
  sv::for_each_vector(static_cast<size_t>(count), [&](auto access, size_t i) {
    V sum = from_final == nullptr ? hn::Zero(d) : access.load(from_final + i);
#pragma GCC unroll 4
    for (int64_t k = 0; k <= before; ++k) {
      const int64_t reader = t + before - k;
      if (reader < 0 || reader >= length) continue;
      sum = hn::MulAdd(hn::Load(d, weights.w + k * kBlock + i),
                       hn::Load(d, block.of(reader, width) + i), sum);
    }
    access.store(sum, dx + i);
  });
}

template <int64_t kTaps>
void backward_sequence(const Backward& a, const Weights& weights, BackwardBlock& block, int64_t s,
                       int64_t c0, int64_t count) {
  const D d;
  const ShortConvDims& dims = a.dims.base;
  const int64_t first = dims.offsets[s], length = dims.offsets[s + 1] - first;
  const int64_t width = kTaps == 0 ? dims.width : kTaps, before = width - 1;
  const Window window = window_of(dims, a.x, s, a.h0[s]);
  for (int64_t t = length - 1; t >= 0; --t) {
    const float* rows[kMaxWidth];
    for (int64_t k = 0; k <= before; ++k) rows[k] = row_of(window, t - before + k, c0);
    const float* dy = a.dy + (first + t) * a.dims.dy_stride + c0;
    float* g = block.of(t, width);
    const float* oldest = window.x + (t - before) * window.x_stride + c0;
    sv::for_each_vector(static_cast<size_t>(count), [&](auto access, size_t i) {
      simd::prefetch_row_ahead(oldest + i, -window.x_stride);
      simd::prefetch_row_ahead(dy + i, -a.dims.dy_stride);
      V gradient = access.load(dy + i);
      if (dims.silu) {
        V sum[1];
        convolve<kTaps>(access, weights, rows, width, i, sum);
        gradient = hn::Mul(gradient, sv::silu_slope(sum[0], sv::sigmoid(sum[0])));
      }
      hn::Store(gradient, d, g + i);
      hn::Store(hn::Add(hn::Load(d, block.dbias + i), gradient), d, block.dbias + i);
#pragma GCC unroll 4
      for (int64_t k = 0; k <= before; ++k) {
        float* dw = block.dw + k * kBlock + i;
        hn::Store(hn::MulAdd(gradient, access.load(rows[k] + i), hn::Load(d, dw)), d, dw);
      }
    });
    input_gradient<kTaps>(dims, weights, block, t, length, a.g_final[s], c0, count,
                          a.dx + (first + t) * dims.channels + c0);
  }
  if (a.g_initial[s] == nullptr) return;
  for (int64_t t = -before; t < 0; ++t) {
    input_gradient<kTaps>(dims, weights, block, t, length, a.g_final[s], c0, count,
                          a.g_initial[s] + (before + t) * dims.channels + c0);
  }
}

void backward(const Backward& a, int64_t c0, int64_t count) {
  const ShortConvDims& dims = a.dims.base;
  const Weights weights(dims, a.w, a.bias, c0, count);
  BackwardBlock block;
  for (int64_t s = 0; s < dims.sequences; ++s) {
    const auto sequence = dims.width == 4 ? backward_sequence<4> : backward_sequence<0>;
    sequence(a, weights, block, s, c0, count);
  }
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t k = 0; k < dims.width; ++k) {
      a.dw[(c0 + c) * dims.width + k] = block.dw[k * kBlock + c];
    }
    if (a.dbias != nullptr) a.dbias[c0 + c] = block.dbias[c];
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

void short_conv(ThreadPool& threads, const ShortConvDims& dims, const float* x, const float* w,
                const float* bias, const float* const* h0, float* const* ht, float* y) {
  const Forward a{dims, x, w, bias, y};
  const int64_t blocks = (dims.channels + kBlock - 1) / kBlock;
  const int64_t rows = 1 + dims.tokens / std::max<int64_t>(1, dims.sequences);
  int64_t longest = 1;
  for (int64_t s = 0; s < dims.sequences; ++s) {
    longest = std::max(longest, dims.offsets[s + 1] - dims.offsets[s]);
  }
  for (int64_t wave = 0; wave < longest; wave += kWave) {
    threads.parallel_for(blocks * dims.sequences, std::max<int64_t>(1, 64 / rows),
                         [&](int64_t begin, int64_t end) {
                           for (int64_t i = begin; i < end; ++i) {
                             const int64_t s = i / blocks, c0 = i % blocks * kBlock;
                             if (wave > 0 && wave >= dims.offsets[s + 1] - dims.offsets[s])
                               continue;
                             HWY_DYNAMIC_DISPATCH(forward)
                             (a, s, wave, c0, std::min(kBlock, dims.channels - c0), h0[s], ht[s]);
                           }
                         });
  }
}

void short_conv_vjp(ThreadPool& threads, const ShortConvVjpDims& dims, const float* x,
                    const float* w, const float* bias, const float* dy, const float* const* h0,
                    const float* const* g_final, float* const* g_initial, float* dx, float* dw,
                    float* dbias) {
  const Backward a{dims, x, w, bias, dy, h0, g_final, g_initial, dx, dw, dbias};
  const int64_t channels = dims.base.channels;
  threads.parallel_for((channels + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(backward)(a, i * kBlock, std::min(kBlock, channels - i * kBlock));
    }
  });
}

}  // namespace braid::cpu
#endif
