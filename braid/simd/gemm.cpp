#include "braid/simd/gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "braid/simd/prefetch.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/simd/gemm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// A tile is kRows x 2 vectors of accumulators, two vectors of b and a broadcast of a: 31 of 32
// registers, or 15 of 16.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

// The same arithmetic on the lanes that exist; the others hold zeros. Where the instruction set has
// no masked access, a whole-vector access could touch memory beyond the row.
HWY_INLINE V load_lanes(D d, const float* from, int64_t count) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(std::max<int64_t>(0, count))), d, from);
#else
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)] = {};
  for (int64_t j = 0; j < std::min<int64_t>(count, hn::Lanes(d)); ++j) lanes[j] = from[j];
  return hn::Load(d, lanes);
#endif
}

HWY_INLINE void store_lanes(V v, D d, float* to, int64_t count) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  hn::BlendedStore(v, hn::FirstN(d, static_cast<size_t>(std::max<int64_t>(0, count))), d, to);
#else
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(v, d, lanes);
  for (int64_t j = 0; j < std::min<int64_t>(count, hn::Lanes(d)); ++j) to[j] = lanes[j];
#endif
}

template <bool kWhole>
HWY_INLINE V load(D d, const float* from, int64_t count) {
  if constexpr (kWhole) {
    return hn::LoadU(d, from);
  } else {
    return load_lanes(d, from, count);
  }
}

template <bool kWhole>
HWY_INLINE void store(V v, D d, float* to, int64_t count) {
  if constexpr (kWhole) {
    hn::StoreU(v, d, to);
  } else {
    store_lanes(v, d, to, count);
  }
}

// kUnit: a_row is 1 (a packed or transposed a), which makes the addresses of a constants.
// `width` columns (at most two vectors) exist.
template <int kM, bool kWhole, bool kUnit>
HWY_NOINLINE void tile(const GemmDims& g, const float* a, const float* b, const float* start,
                       float* c, int64_t width) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V acc0[kM], acc1[kM];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    if (start == nullptr) {
      acc0[i] = hn::Zero(d);
      acc1[i] = hn::Zero(d);
    } else {
      acc0[i] = load<kWhole>(d, start + i * g.start_row, width);
      acc1[i] = load<kWhole>(d, start + i * g.start_row + lanes, width - lanes);
    }
  }
  const int64_t a_row = kUnit ? 1 : g.a_row, a_col = g.a_col, b_row = g.b_row;
  const auto* ahead = static_cast<const char*>(g.ahead == nullptr ? b : g.ahead);
  for (int64_t p = g.k; p > 0; --p) {
    if constexpr (kUnit) prefetch_lines(ahead);
    const V b0 = load<kWhole>(d, b, width);
    const V b1 = load<kWhole>(d, b + lanes, width - lanes);
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const V ai = hn::Set(d, a[i * a_row]);
      acc0[i] = hn::MulAdd(ai, b0, acc0[i]);
      acc1[i] = hn::MulAdd(ai, b1, acc1[i]);
    }
    a += a_col;
    b += b_row;
    ahead += g.ahead_row;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    store<kWhole>(acc0[i], d, c + i * g.c_row, width);
    store<kWhole>(acc1[i], d, c + i * g.c_row + lanes, width - lanes);
  }
}

using Tile = void (*)(const GemmDims&, const float*, const float*, const float*, float*, int64_t);

template <bool kWhole, bool kUnit, size_t... kIndex>
constexpr std::array<Tile, kRows> tiles(std::index_sequence<kIndex...>) {
  return {&tile<static_cast<int>(kIndex) + 1, kWhole, kUnit>...};
}

void gemm(const GemmDims& g, const float* a, const float* b, const float* start, float* c) {
  using Index = std::make_index_sequence<kRows>;
  static constexpr std::array<std::array<Tile, kRows>, 4> kTiles = {
      tiles<false, false>(Index{}), tiles<false, true>(Index{}), tiles<true, false>(Index{}),
      tiles<true, true>(Index{})};
  const auto step = static_cast<int64_t>(2 * hn::Lanes(D()));
  for (int64_t j = 0; j < g.n; j += step) {
    const int64_t width = std::min(step, g.n - j);
    const auto& tile_of = kTiles[(width == step ? 2u : 0u) + (g.a_row == 1 ? 1u : 0u)];
    for (int64_t i = 0; i < g.m; i += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, g.m - i);
      tile_of[static_cast<size_t>(rows - 1)](
          g, a + i * g.a_row, b + j, start == nullptr ? nullptr : start + i * g.start_row + j,
          c + i * g.c_row + j, width);
    }
  }
}

#if HWY_TARGET == HWY_AVX3

// Columns {4 b + c} of four rows in block b of vector c.
HWY_INLINE void turn_blocks(D d, const V (&row)[4], V (&column)[4]) {
  const V low02 = hn::InterleaveLower(d, row[0], row[2]);
  const V low13 = hn::InterleaveLower(d, row[1], row[3]);
  const V high02 = hn::InterleaveUpper(d, row[0], row[2]);
  const V high13 = hn::InterleaveUpper(d, row[1], row[3]);
  column[0] = hn::InterleaveLower(d, low02, low13);
  column[1] = hn::InterleaveUpper(d, low02, low13);
  column[2] = hn::InterleaveLower(d, high02, high13);
  column[3] = hn::InterleaveUpper(d, high02, high13);
}

// At most 16 x 16, of which kWhole has every column. Rows that are not there repeat the last one
// and are not stored.
template <bool kWhole>
HWY_INLINE void transpose_block(int64_t rows, int64_t columns, const float* x, int64_t x_row,
                                float* y, int64_t y_row) {
  const D d;
  V turned[4][4];
#pragma GCC unroll 4
  for (int64_t g = 0; g < 4; ++g) {
    V row[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      row[i] = load<kWhole>(d, x + std::min(4 * g + i, rows - 1) * x_row, columns);
    }
    turn_blocks(d, row, turned[g]);
  }
  const auto there = hn::FirstN(d, static_cast<size_t>(rows));
  const auto put = [&](V v, int64_t column) {
    if (kWhole || column < columns) hn::BlendedStore(v, there, d, y + column * y_row);
  };
#pragma GCC unroll 4
  for (int64_t c = 0; c < 4; ++c) {
    const V even01 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(turned[1][c]), turned[0][c]);
    const V odd01 = hn::OddEvenBlocks(turned[1][c], hn::SwapAdjacentBlocks(turned[0][c]));
    const V even23 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(turned[3][c]), turned[2][c]);
    const V odd23 = hn::OddEvenBlocks(turned[3][c], hn::SwapAdjacentBlocks(turned[2][c]));
    put(hn::ConcatLowerLower(d, even23, even01), c);
    put(hn::ConcatLowerLower(d, odd23, odd01), c + 4);
    put(hn::ConcatUpperUpper(d, even23, even01), c + 8);
    put(hn::ConcatUpperUpper(d, odd23, odd01), c + 12);
  }
}

HWY_INLINE void transpose_blocks(int64_t rows, int64_t columns, const float* x, int64_t x_row,
                                 float* y, int64_t y_row) {
  for (int64_t j = 0; j < columns; j += 16) {
    const bool whole = columns - j >= 16;
    for (int64_t i = 0; i < rows; i += 16) {
      const int64_t count = std::min<int64_t>(16, rows - i);
      const float* from = x + i * x_row + j;
      float* to = y + j * y_row + i;
      if (whole) {
        transpose_block<true>(count, 16, from, x_row, to, y_row);
      } else {
        transpose_block<false>(count, columns - j, from, x_row, to, y_row);
      }
    }
  }
}

#else

HWY_INLINE void transpose_4x4(const float* x, int64_t x_row, float* y, int64_t y_row) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) y[j * y_row + i] = x[i * x_row + j];
  }
#else
  const hn::CappedTag<float, 4> d;
  const auto r0 = hn::LoadU(d, x), r1 = hn::LoadU(d, x + x_row);
  const auto r2 = hn::LoadU(d, x + 2 * x_row), r3 = hn::LoadU(d, x + 3 * x_row);
  const auto low02 = hn::InterleaveLower(d, r0, r2), low13 = hn::InterleaveLower(d, r1, r3);
  const auto high02 = hn::InterleaveUpper(d, r0, r2), high13 = hn::InterleaveUpper(d, r1, r3);
  hn::StoreU(hn::InterleaveLower(d, low02, low13), d, y);
  hn::StoreU(hn::InterleaveUpper(d, low02, low13), d, y + y_row);
  hn::StoreU(hn::InterleaveLower(d, high02, high13), d, y + 2 * y_row);
  hn::StoreU(hn::InterleaveUpper(d, high02, high13), d, y + 3 * y_row);
#endif
}

// In blocks of 4 x 16, a cache line of four rows; what is left over is done again with its
// neighbours by a block that overlaps them.
HWY_INLINE void transpose_blocks(int64_t rows, int64_t columns, const float* x, int64_t x_row,
                                 float* y, int64_t y_row) {
  for (int64_t j0 = 0; j0 < columns; j0 += 16) {
    const int64_t j1 = std::min(columns, j0 + 16);
    for (int64_t i0 = 0; i0 < rows; i0 += 4) {
      const int64_t i = std::min(i0, rows - 4);
      for (int64_t block = j0; block < j1; block += 4) {
        const int64_t j = std::min(block, columns - 4);
        transpose_4x4(x + i * x_row + j, x_row, y + j * y_row + i, y_row);
      }
    }
  }
}

#endif

void transpose(int64_t rows, int64_t columns, const float* x, int64_t x_row, float* y,
               int64_t y_row) {
  if (rows >= 4 && columns >= 4) return transpose_blocks(rows, columns, x, x_row, y, y_row);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[j * y_row + i] = x[i * x_row + j];
  }
}

}  // namespace braid::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::simd {

HWY_EXPORT(gemm);
HWY_EXPORT(transpose);

void gemm(const GemmDims& dims, const float* a, const float* b, const float* start, float* c) {
  HWY_DYNAMIC_DISPATCH(gemm)(dims, a, b, start, c);
}

void transpose(int64_t rows, int64_t columns, const float* x, int64_t x_row, float* y,
               int64_t y_row) {
  HWY_DYNAMIC_DISPATCH(transpose)(rows, columns, x, x_row, y, y_row);
}

}  // namespace braid::simd
#endif
