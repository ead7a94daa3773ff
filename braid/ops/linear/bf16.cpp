#include "braid/ops/linear/bf16.h"

#include <algorithm>
#include <array>
#include <utility>

#include "braid/ops/linear/bf16_widened.h"
#include "braid/simd/bf16_dot.h"
#include "braid/simd/prefetch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define BRAID_BF16_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#endif

namespace braid::cpu {

#if defined(__x86_64__)
namespace {

constexpr int kRows = 14;
constexpr int64_t kPanel = 32;

BRAID_BF16_DOT inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, 16)) - 1u);
}

// kM rows x 32 columns: 28 accumulators, two vectors of b, one broadcast pair of a.
template <int kM, bool kUnit>
BRAID_BF16_DOT void dot_tile(const Bf16TileDims& g, const uint32_t* a, const void* b,
                             const float* start, float* c) {
  const __mmask16 mask0 = first(g.n), mask1 = first(g.n - 16);
  __m512 acc0[kM], acc1[kM];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    acc0[i] = acc1[i] = _mm512_setzero_ps();
    if (start != nullptr) {
      acc0[i] = _mm512_maskz_loadu_ps(mask0, start + i * g.start_row);
      acc1[i] = _mm512_maskz_loadu_ps(mask1, start + i * g.start_row + 16);
    }
  }
  const int64_t a_row = kUnit ? 1 : g.a_row, a_col = g.a_col;
  const auto* panel = static_cast<const __m512i*>(b);
  const auto* ahead = static_cast<const char*>(g.ahead == nullptr ? b : g.ahead);
  for (int64_t p = g.k; p > 0; --p) {
    simd::prefetch_lines(ahead);
    const auto b0 = (__m512bh)_mm512_loadu_si512(panel);
    const auto b1 = (__m512bh)_mm512_loadu_si512(panel + 1);
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const auto ai = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * a_row]));
      acc0[i] = _mm512_dpbf16_ps(acc0[i], ai, b0);
      acc1[i] = _mm512_dpbf16_ps(acc1[i], ai, b1);
    }
    a += a_col;
    panel += 2;
    ahead += 128;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    _mm512_mask_storeu_ps(c + i * g.c_row, mask0, acc0[i]);
    _mm512_mask_storeu_ps(c + i * g.c_row + 16, mask1, acc1[i]);
  }
}

using DotTile = void (*)(const Bf16TileDims&, const uint32_t*, const void*, const float*, float*);

template <bool kUnit, size_t... kIndex>
constexpr std::array<DotTile, kRows> dot_tiles(std::index_sequence<kIndex...>) {
  return {&dot_tile<static_cast<int>(kIndex) + 1, kUnit>...};
}

void dot_tile_any(const Bf16TileDims& g, const uint32_t* a, const void* b, const float* start,
                  float* c) {
  using Index = std::make_index_sequence<kRows>;
  static constexpr auto kUnitTiles = dot_tiles<true>(Index{});
  static constexpr auto kStridedTiles = dot_tiles<false>(Index{});
  const auto& tiles = g.a_row == 1 ? kUnitTiles : kStridedTiles;
  for (int64_t i = 0; i < g.m; i += kRows) {
    const auto rows = static_cast<size_t>(std::min<int64_t>(kRows, g.m - i));
    tiles[rows - 1](g, a + i * g.a_row, b, start == nullptr ? nullptr : start + i * g.start_row,
                    c + i * g.c_row);
  }
}

BRAID_BF16_DOT void dot_round(int64_t count, const float* x, BF16* y) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first(count - i);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16(y + i, mask, (__m256i)rounded);
  }
}

BRAID_BF16_DOT void dot_round_pairs(int64_t count, const float* even, const float* odd, BF16* y) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first(count - i);
    const auto low = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, even + i));
    const auto high = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, odd + i));
    // The zero-masking forms: GCC 12 warns of an uninitialised operand inside the plain ones.
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(mask, high);
    const __m512i pair = _mm512_or_si512(_mm512_maskz_cvtepu16_epi32(mask, low),
                                         _mm512_maskz_slli_epi32(mask, wide, 16));
    _mm512_mask_storeu_epi32(y + 2 * i, mask, pair);
  }
}

}  // namespace

#endif

void round_to_bf16(int64_t count, const float* x, BF16* y) {
#if defined(__x86_64__)
  if (simd::uses_bf16_dot()) return dot_round(count, x, y);
#endif
  round_to_bf16_widened(count, x, y);
}

void round_pairs_to_bf16(int64_t count, const float* even, const float* odd, BF16* y) {
#if defined(__x86_64__)
  if (simd::uses_bf16_dot()) return dot_round_pairs(count, even, odd, y);
#endif
  round_pairs_to_bf16_widened(count, even, odd, y);
}

void bf16_tile(const Bf16TileDims& dims, const void* a, const void* b, const float* start,
               float* c) {
#if defined(__x86_64__)
  if (simd::uses_bf16_dot())
    return dot_tile_any(dims, static_cast<const uint32_t*>(a), b, start, c);
#endif
  bf16_tile_widened(dims, static_cast<const float*>(a), static_cast<const BF16*>(b), start, c);
}

}  // namespace braid::cpu
