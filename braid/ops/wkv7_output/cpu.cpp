#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/wkv7_output/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/wkv7_output/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

using V = vec::F32;

HWY_INLINE V broadcast(float x) { return hn::Set(vec::F32Tag(), x); }

struct HeadStats {
  float mean, rstd, bonus;
};

// `head` is the first element of the head's row, `column` that of its vectors.
HWY_INLINE HeadStats stats_of(const Wkv7OutputDims& dims, size_t head, size_t column,
                              const Wkv7OutputPointers& in) {
  const auto P = static_cast<size_t>(dims.head_dim);
  const auto count = static_cast<float>(dims.head_dim);
  HeadStats out;
  out.mean = vec::sum_over_row(P, [&](auto at, size_t j,
                                      V sum) { return hn::Add(sum, at.load(in.y + head + j)); }) /
             count;
  const V mean = broadcast(out.mean);
  const float squares = vec::sum_over_row(P, [&](auto at, size_t j, V sum) {
    const V v = at.keep(hn::Sub(at.load(in.y + head + j), mean), hn::Zero(vec::F32Tag()));
    return hn::MulAdd(v, v, sum);
  });
  out.rstd = 1.0f / std::sqrt(squares / count + dims.eps);
  out.bonus = vec::sum_over_row(P, [&](auto at, size_t j, V sum) {
    const V rk = hn::Mul(at.load(in.r + head + j), at.load(in.k + head + j));
    return hn::MulAdd(rk, at.load(in.r_k + column + j), sum);
  });
  return out;
}

void read_row(const Wkv7OutputDims& dims, int64_t row, const Wkv7OutputPointers& in, float* out) {
  const auto P = static_cast<size_t>(dims.head_dim), width = static_cast<size_t>(dims.width());
  for (size_t column = 0; column < width; column += P) {
    const size_t head = static_cast<size_t>(row) * width + column;
    const HeadStats stats = stats_of(dims, head, column, in);
    const V mean = broadcast(stats.mean), rstd = broadcast(stats.rstd);
    const V bonus = broadcast(stats.bonus);
    vec::for_each_vector(P, [&](auto at, size_t j) {
      const V n = hn::Mul(hn::Sub(at.load(in.y + head + j), mean), rstd);
      V sum = hn::MulAdd(n, at.load(in.weight + column + j), at.load(in.bias + column + j));
      sum = hn::MulAdd(bonus, at.load(in.v + head + j), sum);
      at.store(hn::Mul(sum, at.load(in.gate + head + j)), out + head + j);
    });
  }
}

// One row; d_vectors (3, H P) gathers. With n = (y - mean) rstd, g = d_out gate and q = g weight:
// dy = rstd (q - mean(q) - n mean(q n)), and the bonus' gradient is sum g v.
void read_row_vjp(const Wkv7OutputDims& dims, int64_t row, const Wkv7OutputPointers& in,
                  const float* d_out, const Wkv7OutputGrads& grads, float* d_vectors) {
  const auto P = static_cast<size_t>(dims.head_dim), width = static_cast<size_t>(dims.width());
  const auto count = static_cast<float>(dims.head_dim);
  for (size_t column = 0; column < width; column += P) {
    const size_t head = static_cast<size_t>(row) * width + column;
    const HeadStats stats = stats_of(dims, head, column, in);
    const V mean = broadcast(stats.mean), rstd = broadcast(stats.rstd);
    const V bonus = broadcast(stats.bonus);
    const auto normal = [&](auto at, size_t j) {
      return hn::Mul(hn::Sub(at.load(in.y + head + j), mean), rstd);
    };
    const auto gated = [&](auto at, size_t j) {
      return hn::Mul(at.load(d_out + head + j), at.load(in.gate + head + j));
    };
    const auto weighted = [&](auto at, size_t j) {
      return hn::Mul(gated(at, j), at.load(in.weight + column + j));
    };
    // Past the end the gradient is 0, whatever n is there.
    const float sum_q = vec::sum_over_row(
        P, [&](auto at, size_t j, V sum) { return hn::Add(sum, weighted(at, j)); });
    const float sum_qn = vec::sum_over_row(P, [&](auto at, size_t j, V sum) {
      return hn::MulAdd(weighted(at, j), normal(at, j), sum);
    });
    const V d_bonus = broadcast(vec::sum_over_row(P, [&](auto at, size_t j, V sum) {
      return hn::MulAdd(gated(at, j), at.load(in.v + head + j), sum);
    }));
    const V mean_q = broadcast(sum_q / count), mean_qn = broadcast(sum_qn / count);
    vec::for_each_vector(P, [&](auto at, size_t j) {
      const V n = normal(at, j), g = gated(at, j), weight = at.load(in.weight + column + j);
      const V r = at.load(in.r + head + j), k = at.load(in.k + head + j);
      const V v = at.load(in.v + head + j), r_k = at.load(in.r_k + column + j);
      const V centred = hn::Sub(hn::Mul(g, weight), mean_q);
      at.store(hn::Mul(rstd, hn::NegMulAdd(n, mean_qn, centred)), grads.y + head + j);
      at.store(hn::Mul(d_bonus, hn::Mul(k, r_k)), grads.r + head + j);
      at.store(hn::Mul(d_bonus, hn::Mul(r, r_k)), grads.k + head + j);
      at.store(hn::Mul(g, bonus), grads.v + head + j);
      V open = hn::MulAdd(n, weight, at.load(in.bias + column + j));
      open = hn::MulAdd(bonus, v, open);
      at.store(hn::Mul(at.load(d_out + head + j), open), grads.gate + head + j);
      float* sums = d_vectors + column + j;
      at.store(hn::MulAdd(d_bonus, hn::Mul(r, k), at.load(sums)), sums);
      at.store(hn::MulAdd(g, n, at.load(sums + width)), sums + width);
      at.store(hn::Add(g, at.load(sums + 2 * width)), sums + 2 * width);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(read_row);
HWY_EXPORT(read_row_vjp);

void wkv7_output(ThreadPool& threads, const Wkv7OutputDims& dims, const Wkv7OutputPointers& in,
                 float* out) {
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) HWY_DYNAMIC_DISPATCH(read_row)(dims, row, in, out);
  });
}

void wkv7_output_vjp(ThreadPool& threads, const Wkv7OutputDims& dims, const Wkv7OutputPointers& in,
                     const float* d_out, float* partial, const Wkv7OutputGrads& grads) {
  const int64_t all = 3 * dims.width();
  threads.parallel_for(dims.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = partial + block * all;
      std::fill_n(sums, all, 0.0f);
      const int64_t first = block * Wkv7OutputDims::kBlockRows;
      const int64_t last = std::min(first + Wkv7OutputDims::kBlockRows, dims.rows);
      for (int64_t row = first; row < last; ++row) {
        HWY_DYNAMIC_DISPATCH(read_row_vjp)(dims, row, in, d_out, grads, sums);
      }
    }
  });
  threads.parallel_for(all, 1024, [&](int64_t begin, int64_t end) {
    std::fill(grads.vectors + begin, grads.vectors + end, 0.0f);
    for (int64_t block = 0; block < dims.blocks(); ++block) {
      for (int64_t j = begin; j < end; ++j) grads.vectors[j] += partial[block * all + j];
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
