#include "braid/ops/attention/pair_gemm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace braid::cpu {

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")
#endif

namespace {

constexpr int kRows = 14;  // times two vectors: 28 accumulators, two vectors of b, one pair of a

// Intrinsics, since Highway has no bfloat16 dot product with this instruction. kWhole: 32 columns
// exist; else the masks say which, and the others are zero.
template <int kM, bool kWhole>
__attribute__((noinline)) void tile(const PairGemmDims& g, const BF16* a, const BF16* b, float* c,
                                    uint32_t columns) {
  const auto low = static_cast<__mmask16>(columns), high = static_cast<__mmask16>(columns >> 16);
  __m512 acc0[kM], acc1[kM];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    acc0[i] = acc1[i] = _mm512_setzero_ps();
    if (g.accumulate) {
      const float* from = c + i * g.c_row;
      acc0[i] = kWhole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(low, from);
      acc1[i] = kWhole ? _mm512_loadu_ps(from + 16) : _mm512_maskz_loadu_ps(high, from + 16);
    }
  }
  const int64_t a_row = 2 * g.a_row, b_row = 2 * g.b_row;
  for (int64_t p = g.pairs; p > 0; --p) {
    const auto b0 = reinterpret_cast<__m512bh>(kWhole ? _mm512_loadu_si512(b)
                                                      : _mm512_maskz_loadu_epi32(low, b));
    const auto b1 = reinterpret_cast<__m512bh>(kWhole ? _mm512_loadu_si512(b + 32)
                                                      : _mm512_maskz_loadu_epi32(high, b + 32));
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * a_row, sizeof(pair));
      const auto ai = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      acc0[i] = _mm512_dpbf16_ps(acc0[i], ai, b0);
      acc1[i] = _mm512_dpbf16_ps(acc1[i], ai, b1);
    }
    a += 2;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    float* to = c + i * g.c_row;
    if constexpr (kWhole) {
      _mm512_storeu_ps(to, acc0[i]);
      _mm512_storeu_ps(to + 16, acc1[i]);
    } else {
      _mm512_mask_storeu_ps(to, low, acc0[i]);
      _mm512_mask_storeu_ps(to + 16, high, acc1[i]);
    }
  }
}

using Tile = void (*)(const PairGemmDims&, const BF16*, const BF16*, float*, uint32_t);

template <bool kWhole, size_t... kIndex>
constexpr std::array<Tile, kRows> tiles(std::index_sequence<kIndex...>) {
  return {&tile<static_cast<int>(kIndex) + 1, kWhole>...};
}

}  // namespace

void pair_gemm(const PairGemmDims& g, const BF16* a, const BF16* b, float* c) {
  using Index = std::make_index_sequence<kRows>;
  static constexpr std::array<std::array<Tile, kRows>, 2> kTiles = {tiles<false>(Index{}),
                                                                    tiles<true>(Index{})};
  for (int64_t j = 0; j < g.n; j += 32) {
    const int64_t width = std::min<int64_t>(32, g.n - j);
    const uint32_t columns = 0xffffffffu >> (32 - width);
    for (int64_t i = 0; i < g.m; i += kRows) {
      const auto rows = static_cast<size_t>(std::min<int64_t>(kRows, g.m - i));
      kTiles[width == 32 ? 1 : 0][rows - 1](g, a + 2 * i * g.a_row, b + 2 * j, c + i * g.c_row + j,
                                            columns);
    }
  }
}

void round_rows(int64_t rows, int64_t count, int64_t stride, const float* x, BF16* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = x + i * stride;
    BF16* to = y + i * stride;
    int64_t j = 0;
    for (; j + 16 <= count; j += 16) {
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + j));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), reinterpret_cast<__m256i>(rounded));
    }
    if (j < count) {
      const auto lanes = static_cast<__mmask16>(0xffffu >> (16 - (count - j)));
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from + j));
      _mm256_mask_storeu_epi16(to + j, lanes, reinterpret_cast<__m256i>(rounded));
    }
  }
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

void pair_gemm(const PairGemmDims&, const BF16*, const BF16*, float*) {}
void round_rows(int64_t, int64_t, int64_t, const float*, BF16*) {}

#endif

}  // namespace braid::cpu
