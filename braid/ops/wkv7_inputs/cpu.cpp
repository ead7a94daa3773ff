#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/wkv7_inputs/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/wkv7_inputs/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;

using V = sv::F32;

constexpr float kDecayScale = -0.606530659712633f;  // -e^(-1/2)
constexpr float kSmallestNorm = 1e-12f;

HWY_INLINE V broadcast(float x) { return hn::Set(sv::F32Tag(), x); }

// max(|u|, bound) of one head, u = k k_k. A NaN stays one.
HWY_INLINE float norm_of(size_t P, const float* k, const float* k_k) {
  const float squares = sv::sum_over_row(P, [&](auto at, size_t j, V sum) {
    const V u = hn::Mul(at.load(k + j), at.load(k_k + j));
    return hn::MulAdd(u, u, sum);
  });
  return std::max(std::sqrt(squares), kSmallestNorm);
}

// One row.
void prepare_row(const Wkv7InputsDims& dims, int64_t row, const Wkv7RawPointers& in,
                 const Wkv7PreparedPointers& out) {
  const V one = broadcast(1.0f), scale = broadcast(kDecayScale);
  const auto P = static_cast<size_t>(dims.head_dim), width = static_cast<size_t>(dims.width());
  for (size_t column = 0; column < width; column += P) {
    const size_t head = static_cast<size_t>(row) * width + column;
    const V inverse = broadcast(1.0f / norm_of(P, in.k + head, in.k_k + column));
    sv::for_each_vector(P, [&](auto at, size_t j) {
      const size_t i = head + j;
      const V k = at.load(in.k + i), rate = sv::sigmoid(at.load(in.rate + i));
      const V kappa = hn::Mul(hn::Mul(k, at.load(in.k_k + column + j)), inverse);
      const V factor = hn::MulAdd(hn::Sub(rate, one), at.load(in.k_a + column + j), one);
      at.store(hn::Mul(scale, sv::sigmoid(at.load(in.decay + i))), out.log_decay + i);
      at.store(hn::Mul(k, factor), out.k + i);
      at.store(hn::Neg(kappa), out.a + i);
      at.store(hn::Mul(kappa, rate), out.b + i);
      if (dims.mix_values) {
        const V v = at.load(in.v + i), mix = sv::sigmoid(at.load(in.v_mix + i));
        at.store(hn::MulAdd(hn::Sub(at.load(in.v_first + i), v), mix, v), out.v + i);
      }
    });
  }
}

// The values of one row: dv = dv' (1 - m), dv_first = dv' m, and through m.
void mix_row_vjp(size_t width, size_t row, const Wkv7RawPointers& in, const float* dy,
                 const Wkv7RawGrads& dx) {
  const V one = broadcast(1.0f);
  sv::for_each_vector(width, [&](auto at, size_t j) {
    const size_t i = row * width + j;
    const V g = at.load(dy + i), mix = sv::sigmoid(at.load(in.v_mix + i));
    const V to_first = hn::Mul(g, mix);
    const V step = hn::Sub(at.load(in.v_first + i), at.load(in.v + i));
    at.store(to_first, dx.v_first + i);
    at.store(hn::Sub(g, to_first), dx.v + i);
    at.store(hn::Mul(hn::Mul(to_first, step), hn::Sub(one, mix)), dx.v_mix + i);
  });
}

// One row; d_k_k and d_k_a (H P) gather.
void prepare_row_vjp(const Wkv7InputsDims& dims, int64_t row, const Wkv7RawPointers& in,
                     const Wkv7PreparedGrads& dy, const Wkv7RawGrads& dx, float* d_k_k,
                     float* d_k_a) {
  const V one = broadcast(1.0f), scale = broadcast(kDecayScale);
  const auto P = static_cast<size_t>(dims.head_dim), width = static_cast<size_t>(dims.width());
  for (size_t column = 0; column < width; column += P) {
    const size_t head = static_cast<size_t>(row) * width + column;
    const float norm = norm_of(P, in.k + head, in.k_k + column);
    const V inverse = broadcast(1.0f / norm);
    const auto kappa_at = [&](auto at, size_t j) {
      return hn::Mul(hn::Mul(at.load(in.k + head + j), at.load(in.k_k + column + j)), inverse);
    };
    const auto d_kappa_at = [&](auto at, size_t j) {
      const V rate = sv::sigmoid(at.load(in.rate + head + j));
      return hn::MulSub(rate, at.load(dy.b + head + j), at.load(dy.a + head + j));
    };
    // The norm is free only above its bound. Past the end kappa is 0.
    const float along =
        norm <= kSmallestNorm ? 0.0f : sv::sum_over_row(P, [&](auto at, size_t j, V sum) {
          return hn::MulAdd(kappa_at(at, j), d_kappa_at(at, j), sum);
        });
    sv::for_each_vector(P, [&](auto at, size_t j) {
      const size_t i = head + j;
      const V k = at.load(in.k + i), kappa = kappa_at(at, j);
      const V k_k = at.load(in.k_k + column + j), k_a = at.load(in.k_a + column + j);
      const V rate = sv::sigmoid(at.load(in.rate + i)), less = hn::Sub(rate, one);
      const V du = hn::Mul(hn::NegMulAdd(kappa, broadcast(along), d_kappa_at(at, j)), inverse);
      const V dk = at.load(dy.k + i), dk_k = hn::Mul(dk, k);
      at.store(hn::MulAdd(du, k_k, hn::Mul(dk, hn::MulAdd(less, k_a, one))), dx.k + i);
      at.store(hn::MulAdd(du, k, at.load(d_k_k + column + j)), d_k_k + column + j);
      at.store(hn::MulAdd(dk_k, less, at.load(d_k_a + column + j)), d_k_a + column + j);
      const V d_rate = hn::MulAdd(dk_k, k_a, hn::Mul(at.load(dy.b + i), kappa));
      at.store(hn::Mul(d_rate, hn::Mul(rate, hn::Sub(one, rate))), dx.rate + i);
      const V s = sv::sigmoid(at.load(in.decay + i));
      const V slope = hn::Mul(scale, hn::Mul(s, hn::Sub(one, s)));
      at.store(hn::Mul(at.load(dy.log_decay + i), slope), dx.decay + i);
    });
  }
  if (dims.mix_values) mix_row_vjp(width, static_cast<size_t>(row), in, dy.v, dx);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(prepare_row);
HWY_EXPORT(prepare_row_vjp);

void wkv7_inputs(ThreadPool& threads, const Wkv7InputsDims& dims, const Wkv7RawPointers& in,
                 const Wkv7PreparedPointers& out) {
  threads.parallel_for(dims.rows, 1 + 8192 / dims.width(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      HWY_DYNAMIC_DISPATCH(prepare_row)(dims, row, in, out);
  });
}

void wkv7_inputs_vjp(ThreadPool& threads, const Wkv7InputsDims& dims, const Wkv7RawPointers& in,
                     const Wkv7PreparedGrads& dy, float* partial, const Wkv7RawGrads& dx) {
  const int64_t width = dims.width();
  threads.parallel_for(dims.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = partial + block * 2 * width;
      std::fill_n(sums, 2 * width, 0.0f);
      const int64_t first = block * Wkv7InputsDims::kBlockRows;
      const int64_t last = std::min(first + Wkv7InputsDims::kBlockRows, dims.rows);
      for (int64_t row = first; row < last; ++row) {
        HWY_DYNAMIC_DISPATCH(prepare_row_vjp)(dims, row, in, dy, dx, sums, sums + width);
      }
    }
  });
  threads.parallel_for(2 * width, 1024, [&](int64_t begin, int64_t end) {
    std::fill(dx.vectors + begin, dx.vectors + end, 0.0f);
    for (int64_t block = 0; block < dims.blocks(); ++block) {
      for (int64_t j = begin; j < end; ++j) dx.vectors[j] += partial[block * 2 * width + j];
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
