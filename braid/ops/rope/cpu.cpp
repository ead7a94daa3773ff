#include <algorithm>
#include <cmath>

#include "braid/ops/rope/kernels.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/rope/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Which vector width turns a pair depends on its index alone, and one lane does the same fused
// arithmetic as sixteen.
template <class D>
HWY_INLINE int64_t turn_halves(D d, int64_t i, int64_t pairs, float sign, const float* x,
                               const float* cos, const float* sin, float* y) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto turn = hn::Set(d, sign);
  for (; i + lanes <= pairs; i += lanes) {
    const auto c = hn::LoadU(d, cos + i), s = hn::Mul(turn, hn::LoadU(d, sin + i));
    const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + pairs + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, y + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), d, y + pairs + i);
  }
  return i;
}

template <class D>
HWY_INLINE int64_t turn_neighbours(D d, int64_t i, int64_t pairs, float sign, const float* x,
                                   const float* cos, const float* sin, float* y) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto turn = hn::Set(d, sign);
  for (; i + lanes <= pairs; i += lanes) {
    const auto c = hn::LoadU(d, cos + i), s = hn::Mul(turn, hn::LoadU(d, sin + i));
    hn::Vec<D> a, b;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    hn::StoreInterleaved2(hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(a, s, hn::Mul(b, c)), d,
                          y + 2 * i);
  }
  return i;
}

void turn_rows(const RopeDims& dims, int64_t begin, int64_t end, const float* x, const float* cos,
               const float* sin, float* y) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const float sign = dims.inverse ? -1.0f : 1.0f;
  const int64_t pairs = dims.pairs, first = dims.first;
  const int64_t rest = dims.head_dim - first - 2 * pairs;
  for (int64_t row = begin; row < end; ++row) {
    const float* c = cos + row * pairs;
    const float* s = sin + row * pairs;
    for (int64_t h = 0; h < dims.heads; ++h) {
      const float* from = x + row * dims.x_stride + h * dims.head_dim + first;
      float* to = y + (row * dims.heads + h) * dims.head_dim + first;
      if (first > 0 && from != to) std::copy_n(from - first, first, to - first);
      if (dims.interleaved) {
        turn_neighbours(one, turn_neighbours(d, 0, pairs, sign, from, c, s, to), pairs, sign, from,
                        c, s, to);
      } else {
        turn_halves(one, turn_halves(d, 0, pairs, sign, from, c, s, to), pairs, sign, from, c, s,
                    to);
      }
      if (rest > 0 && from != to) std::copy_n(from + 2 * pairs, rest, to + 2 * pairs);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(turn_rows);

void rope_angles(ThreadPool& threads, const RopeAnglesDims& dims, const int64_t* position,
                 const int64_t* table, const double* inv_freq, const double* factor, float* cos,
                 float* sin) {
  const int64_t pairs = dims.pairs;
  const int64_t grain = std::max<int64_t>(1, 2048 / pairs);
  threads.parallel_for(dims.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double* f = inv_freq + table[row] * pairs;
      const double scale = factor[table[row]];
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(position[row]) * f[i];
        cos[row * pairs + i] = static_cast<float>(scale * std::cos(angle));
        sin[row * pairs + i] = static_cast<float>(scale * std::sin(angle));
      }
    }
  });
}

void rope(ThreadPool& threads, const RopeDims& dims, const float* x, const float* cos,
          const float* sin, float* y) {
  const auto turn = HWY_DYNAMIC_DISPATCH(turn_rows);
  const int64_t grain = std::max<int64_t>(1, 32768 / (dims.heads * dims.head_dim));
  threads.parallel_for(dims.rows, grain,
                       [&](int64_t begin, int64_t end) { turn(dims, begin, end, x, cos, sin, y); });
}

}  // namespace braid::cpu
#endif
