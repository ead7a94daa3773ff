#include "braid/ops/linear/bf16_widened.h"

#include <algorithm>
#include <array>
#include <utility>

#include "braid/simd/prefetch.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/linear/bf16_widened.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;

// Two vectors of pairs, their even or odd halves and a broadcast stand beside the accumulators.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kRows = 13;
#else
constexpr int kRows = 5;
#endif
constexpr int64_t kPanel = 32;

template <int kM>
HWY_NOINLINE void tile(const Bf16TileDims& g, const float* a, const uint32_t* b, const float* start,
                       float* c) {
  const D d;
  const DU du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V acc0[kM], acc1[kM];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    acc0[i] = start == nullptr ? hn::Zero(d) : hn::LoadU(d, start + i * g.start_row);
    acc1[i] = start == nullptr ? hn::Zero(d) : hn::LoadU(d, start + i * g.start_row + lanes);
  }
  const auto* ahead =
      g.ahead == nullptr ? reinterpret_cast<const char*>(b) : static_cast<const char*>(g.ahead);
  for (int64_t p = 0; p < g.k; p += 2) {
    simd::prefetch_lines(ahead);
    const auto pair0 = hn::LoadU(du, b), pair1 = hn::LoadU(du, b + lanes);
    const V even0 = hn::BitCast(d, hn::ShiftLeft<16>(pair0));
    const V even1 = hn::BitCast(d, hn::ShiftLeft<16>(pair1));
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const V ai = hn::Set(d, a[i * g.a_row]);
      acc0[i] = hn::MulAdd(ai, even0, acc0[i]);
      acc1[i] = hn::MulAdd(ai, even1, acc1[i]);
    }
    const auto high = hn::Set(du, 0xffff0000u);
    const V odd0 = hn::BitCast(d, hn::And(pair0, high)),
            odd1 = hn::BitCast(d, hn::And(pair1, high));
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const V ai = hn::Set(d, a[i * g.a_row + g.a_col]);
      acc0[i] = hn::MulAdd(ai, odd0, acc0[i]);
      acc1[i] = hn::MulAdd(ai, odd1, acc1[i]);
    }
    a += 2 * g.a_col;
    b += kPanel;
    ahead += 128;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
    hn::StoreU(acc0[i], d, c + i * g.c_row);
    hn::StoreU(acc1[i], d, c + i * g.c_row + lanes);
  }
}

using Tile = void (*)(const Bf16TileDims&, const float*, const uint32_t*, const float*, float*);

template <size_t... kIndex>
constexpr std::array<Tile, kRows> tiles(std::index_sequence<kIndex...>) {
  return {&tile<static_cast<int>(kIndex) + 1>...};
}

// A panel that is not full goes by way of a whole tile on the stack: the panel
// itself is padded, the rows of c are not.
void bf16_tile(const Bf16TileDims& g, const float* a, const BF16* b, const float* start, float* c) {
  static constexpr auto kTiles = tiles(std::make_index_sequence<kRows>{});
  const auto step = static_cast<int64_t>(2 * hn::Lanes(D()));
  const auto* units = reinterpret_cast<const uint32_t*>(b);
  for (int64_t i = 0; i < g.m; i += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, g.m - i);
    const Tile tile_of = kTiles[static_cast<size_t>(rows - 1)];
    for (int64_t j = 0; j < g.n; j += step) {
      const float* from = start == nullptr ? nullptr : start + i * g.start_row + j;
      float* to = c + i * g.c_row + j;
      if (g.n - j >= step) {
        tile_of(g, a + i * g.a_row, units + j, from, to);
        continue;
      }
      float whole[kRows * kPanel] = {};
      Bf16TileDims dims = g;
      dims.c_row = dims.start_row = kPanel;
      for (int64_t r = 0; r < rows && from != nullptr; ++r) {
        std::copy_n(from + r * g.start_row, g.n - j, whole + r * kPanel);
      }
      tile_of(dims, a + i * g.a_row, units + j, whole, whole);
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(whole + r * kPanel, g.n - j, to + r * g.c_row);
      }
    }
  }
}

// The rounded value in the low half of each lane.
HWY_INLINE hn::Vec<DU> rounded(V x) {
  const DU du;
  const auto bits = hn::BitCast(du, x), high = hn::ShiftRight<16>(bits);
  const auto even = hn::Add(hn::Set(du, 0x7fffu), hn::And(high, hn::Set(du, 1u)));
  const auto nan = hn::BitCast(du, hn::VecFromMask(D(), hn::IsNaN(x)));
  const auto quiet = hn::Or(high, hn::Set(du, 0x40u));
  return hn::IfVecThenElse(nan, quiet, hn::ShiftRight<16>(hn::Add(bits, even)));
}

void round_to_bf16(int64_t count, const float* x, BF16* y) {
  const D d;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::BitCast(di, rounded(hn::LoadU(d, x + i)));
    hn::StoreU(hn::DemoteTo(d16, bits), d16, reinterpret_cast<uint16_t*>(y + i));
  }
  for (; i < count; ++i) y[i] = to_bf16(x[i]);
}

void round_pairs_to_bf16(int64_t count, const float* even, const float* odd, BF16* y) {
  const D d;
  const DU du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto low = rounded(hn::LoadU(d, even + i)), high = rounded(hn::LoadU(d, odd + i));
    hn::StoreU(hn::Or(low, hn::ShiftLeft<16>(high)), du, reinterpret_cast<uint32_t*>(y + 2 * i));
  }
  for (; i < count; ++i) {
    y[2 * i] = to_bf16(even[i]);
    y[2 * i + 1] = to_bf16(odd[i]);
  }
}

void widen_panel(int64_t pairs, const void* b, float* w) {
  const D d;
  const DU du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto high = hn::Set(du, 0xffff0000u);
  const auto* units = static_cast<const uint32_t*>(b);
  for (int64_t p = 0; p < pairs; ++p) {
    for (int64_t j = 0; j < kPanel; j += lanes) {
      const auto pair = hn::LoadU(du, units + j);
      hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(pair)), d, w + j);
      hn::StoreU(hn::BitCast(d, hn::And(pair, high)), d, w + kPanel + j);
    }
    units += kPanel;
    w += 2 * kPanel;
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(bf16_tile);
HWY_EXPORT(widen_panel);
HWY_EXPORT(round_to_bf16);
HWY_EXPORT(round_pairs_to_bf16);

void bf16_tile_widened(const Bf16TileDims& dims, const float* a, const BF16* b, const float* start,
                       float* c) {
  HWY_DYNAMIC_DISPATCH(bf16_tile)(dims, a, b, start, c);
}

void widen_panel(int64_t pairs, const void* b, float* w) {
  HWY_DYNAMIC_DISPATCH(widen_panel)(pairs, b, w);
}

void round_to_bf16_widened(int64_t count, const float* x, BF16* y) {
  HWY_DYNAMIC_DISPATCH(round_to_bf16)(count, x, y);
}

void round_pairs_to_bf16_widened(int64_t count, const float* even, const float* odd, BF16* y) {
  HWY_DYNAMIC_DISPATCH(round_pairs_to_bf16)(count, even, odd, y);
}

}  // namespace braid::cpu
#endif
