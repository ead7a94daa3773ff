#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/layer_norm/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/layer_norm/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void standardize_rows(const LayerNormDims& dims, int64_t begin, int64_t end, const float* x,
                      const float* w, const float* b, float* y, float* stats) {
  const vec::F32Tag d;
  const auto width = static_cast<size_t>(dims.width);
  const auto count = static_cast<float>(dims.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* xi = x + row * dims.x_stride;  // (width)
    float* yi = y + row * dims.width;
    const float mean =
        vec::sum_over_row(
            width, [&](auto at, size_t j, vec::F32 sum) { return hn::Add(sum, at.load(xi + j)); }) /
        count;
    const vec::F32 mv = hn::Set(d, mean);
    const float squares = vec::sum_over_row(width, [&](auto at, size_t j, vec::F32 sum) {
      const vec::F32 v = at.keep(hn::Sub(at.load(xi + j), mv), hn::Zero(d));
      return hn::MulAdd(v, v, sum);
    });
    const float r = 1.0f / std::sqrt(squares / count + dims.eps);
    stats[2 * row] = mean;
    stats[2 * row + 1] = r;
    const vec::F32 rv = hn::Set(d, r);
    vec::for_each_vector(width, [&](auto at, size_t j) {
      const vec::F32 n = hn::Mul(hn::Sub(at.load(xi + j), mv), rv);
      const vec::F32 bias = b == nullptr ? hn::Zero(d) : at.load(b + j);
      at.store(hn::MulAdd(n, at.load(w + j), bias), yi + j);
    });
  }
}

// With n = (x - mean) rstd and g = dy w:  dx = rstd (g - mean(g) - n mean(g n)).
void standardize_rows_vjp(const LayerNormDims& dims, int64_t block, const float* x, const float* w,
                          const float* stats, const float* dy, float* dx, float* dw, float* db) {
  const vec::F32Tag d;
  const auto width = static_cast<size_t>(dims.width);
  const auto count = static_cast<float>(dims.width);
  const int64_t begin = block * LayerNormDims::kBlockRows;
  const int64_t end = std::min(begin + LayerNormDims::kBlockRows, dims.rows);
  std::fill_n(dw, width, 0.0f);
  std::fill_n(db, width, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    const float* xi = x + row * dims.x_stride;
    const float* dyi = dy + row * dims.dy_stride;
    float* dxi = dx + row * dims.width;
    const vec::F32 mean = hn::Set(d, stats[2 * row]);
    const vec::F32 r = hn::Set(d, stats[2 * row + 1]);
    const auto normal = [&](auto at, size_t j) {
      return hn::Mul(hn::Sub(at.load(xi + j), mean), r);
    };
    const auto gradient = [&](auto at, size_t j) {
      return hn::Mul(at.load(dyi + j), at.load(w + j));
    };
    const float sum_g = vec::sum_over_row(
        width, [&](auto at, size_t j, vec::F32 sum) { return hn::Add(sum, gradient(at, j)); });
    // Past the end g is 0, whatever n is there.
    const float sum_gn = vec::sum_over_row(width, [&](auto at, size_t j, vec::F32 sum) {
      return hn::MulAdd(gradient(at, j), normal(at, j), sum);
    });
    const vec::F32 mean_g = hn::Set(d, sum_g / count), mean_gn = hn::Set(d, sum_gn / count);
    vec::for_each_vector(width, [&](auto at, size_t j) {
      const vec::F32 n = normal(at, j), v = at.load(dyi + j);
      const vec::F32 centred = hn::Sub(gradient(at, j), mean_g);
      at.store(hn::Mul(r, hn::NegMulAdd(n, mean_gn, centred)), dxi + j);
      at.store(hn::MulAdd(v, n, at.load(dw + j)), dw + j);
      at.store(hn::Add(v, at.load(db + j)), db + j);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(standardize_rows);
HWY_EXPORT(standardize_rows_vjp);

void layer_norm(ThreadPool& threads, const LayerNormDims& dims, const float* x, const float* w,
                const float* b, float* y, float* stats) {
  threads.parallel_for(dims.rows, 1 + 32768 / dims.width, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(standardize_rows)(dims, begin, end, x, w, b, y, stats);
  });
}

void layer_norm_vjp(ThreadPool& threads, const LayerNormDims& dims, const float* x, const float* w,
                    const float* stats, const float* dy, float* dx, float* dwb, float* partial) {
  const int64_t both = 2 * dims.width;
  const int64_t grain = 1 + 32768 / (dims.width * LayerNormDims::kBlockRows);
  threads.parallel_for(dims.blocks(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* dw = partial + block * both;
      HWY_DYNAMIC_DISPATCH(standardize_rows_vjp)
      (dims, block, x, w, stats, dy, dx, dw, dw + dims.width);
    }
  });
  threads.parallel_for(both, 1024, [&](int64_t begin, int64_t end) {
    std::fill(dwb + begin, dwb + end, 0.0f);
    for (int64_t block = 0; block < dims.blocks(); ++block) {
      const float* from = partial + block * both;
      for (int64_t j = begin; j < end; ++j) dwb[j] += from[j];
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
