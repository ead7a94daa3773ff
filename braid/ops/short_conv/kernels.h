#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

inline constexpr int64_t kShortConvMaxWidth = 16;

/// Strides are elements between rows; state rows are dense.
struct ShortConvDims {
  int64_t tokens, sequences, channels, width;  // T, S, C, W
  int64_t x_stride, y_stride;
  const int64_t* offsets = nullptr;  // (S + 1), like h0 and ht a table where the kernel runs
  bool silu = false;
};

struct ShortConvVjpDims {
  ShortConvDims base;
  int64_t dy_stride;
  /// CUDA only: tokens whose part of dw and dbias is added up first, and scratch for these parts,
  /// (tiles, W + 1, C).
  static constexpr int64_t kTile = 64;
  float* partial = nullptr;
  constexpr int64_t tiles() const { return (base.tokens + kTile - 1) / kTile; }
};

namespace cpu {

/// y (T, C) from x (T, C), w (C, W), bias (C) or null. h0[s], ht[s] (W - 1, C): the inputs before
/// and after; null h0[s] is zero, null ht[s] not wanted, h0[s] == ht[s] allowed.
void short_conv(ThreadPool& threads, const ShortConvDims& dims, const float* x, const float* w,
                const float* bias, const float* const* h0, float* const* ht, float* y);

/// dx (T, C) dense; dw (C, W); dbias (C) or null. g_final[s], g_initial[s] (W - 1, C): gradient of
/// the last inputs (null: zero) and of the first ones (null: not wanted).
void short_conv_vjp(ThreadPool& threads, const ShortConvVjpDims& dims, const float* x,
                    const float* w, const float* bias, const float* dy, const float* const* h0,
                    const float* const* g_final, float* const* g_initial, float* dx, float* dw,
                    float* dbias);

}  // namespace cpu

namespace cuda {

/// As on the CPU, on a queue.
void short_conv(void* queue, const ShortConvDims& dims, const float* x, const float* w,
                const float* bias, const float* const* h0, float* const* ht, float* y);
void short_conv_vjp(void* queue, const ShortConvVjpDims& dims, const float* x, const float* w,
                    const float* bias, const float* dy, const float* const* h0,
                    const float* const* g_final, float* const* g_initial, float* dx, float* dw,
                    float* dbias);

}  // namespace cuda
}  // namespace braid
