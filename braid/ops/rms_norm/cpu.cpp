#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/rms_norm/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/rms_norm/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void normalize_rows(const RmsNormDims& dims, int64_t begin, int64_t end, const float* x,
                    const float* w, float* y, float* rstd) {
  const vec::F32Tag d;
  const auto width = static_cast<size_t>(dims.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* xi = x + dims.x_at(row);  // (width)
    float* yi = y + row * dims.width;
    const float squares = vec::sum_over_row(width, [&](auto at, size_t j, vec::F32 sum) {
      const vec::F32 v = at.load(xi + j);
      return hn::MulAdd(v, v, sum);
    });
    const float r = 1.0f / std::sqrt(squares / static_cast<float>(dims.width) + dims.eps);
    rstd[row] = r;
    const vec::F32 rv = hn::Set(d, r);
    vec::for_each_vector(width, [&](auto at, size_t j) {
      const vec::F32 n = hn::Mul(at.load(xi + j), rv);
      at.store(w == nullptr ? n : hn::Mul(n, at.load(w + j)), yi + j);
    });
  }
}

// dx = rstd (g - x rstd^2 mean(g x)) with g = dy w; dw gathers dy x rstd over the block's rows.
void normalize_rows_vjp(const RmsNormDims& dims, int64_t block, const float* x, const float* w,
                        const float* rstd, const float* dy, float* dx, float* dw) {
  const vec::F32Tag d;
  const auto width = static_cast<size_t>(dims.width);
  const int64_t begin = block * RmsNormDims::kBlockRows;
  const int64_t end = std::min(begin + RmsNormDims::kBlockRows, dims.rows);
  if (dw != nullptr) std::fill_n(dw, width, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    const float* xi = x + dims.x_at(row);
    const float* dyi = dy + dims.dy_at(row);
    float* dxi = dx + row * dims.width;
    const auto gradient = [&](auto at, size_t j) {
      const vec::F32 v = at.load(dyi + j);
      return w == nullptr ? v : hn::Mul(v, at.load(w + j));
    };
    const float dot = vec::sum_over_row(width, [&](auto at, size_t j, vec::F32 sum) {
      return hn::MulAdd(gradient(at, j), at.load(xi + j), sum);
    });
    const float r = rstd[row];
    const vec::F32 rv = hn::Set(d, r);
    const vec::F32 pull = hn::Set(d, dot / static_cast<float>(dims.width) * r * r);
    vec::for_each_vector(width, [&](auto at, size_t j) {
      const vec::F32 v = at.load(xi + j);
      at.store(hn::Mul(rv, hn::NegMulAdd(v, pull, gradient(at, j))), dxi + j);
      if (dw != nullptr) {
        at.store(hn::MulAdd(hn::Mul(at.load(dyi + j), rv), v, at.load(dw + j)), dw + j);
      }
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(normalize_rows);
HWY_EXPORT(normalize_rows_vjp);

void rms_norm(ThreadPool& threads, const RmsNormDims& dims, const float* x, const float* w,
              float* y, float* rstd) {
  const int64_t grain = 1 + 32768 / dims.width;
  threads.parallel_for(dims.rows, grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(normalize_rows)(dims, begin, end, x, w, y, rstd);
  });
}

void rms_norm_vjp(ThreadPool& threads, const RmsNormDims& dims, const float* x, const float* w,
                  const float* rstd, const float* dy, float* dx, float* dw, float* partial) {
  const int64_t grain = 1 + 32768 / (dims.width * RmsNormDims::kBlockRows);
  threads.parallel_for(dims.blocks(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      HWY_DYNAMIC_DISPATCH(normalize_rows_vjp)
      (dims, block, x, w, rstd, dy, dx, dw == nullptr ? nullptr : partial + block * dims.width);
    }
  });
  if (dw == nullptr) return;
  threads.parallel_for(dims.width, 1024, [&](int64_t begin, int64_t end) {
    std::fill(dw + begin, dw + end, 0.0f);
    for (int64_t block = 0; block < dims.blocks(); ++block) {
      const float* from = partial + block * dims.width;
      for (int64_t j = begin; j < end; ++j) dw[j] += from[j];
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
