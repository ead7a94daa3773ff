#include "braid/core/thread_pool.h"
#include "braid/ops/swiglu/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/swiglu/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void gate_rows(const SwigluDims& dims, int64_t begin, int64_t end, const float* x, float* y) {
  const auto width = static_cast<size_t>(dims.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = x + row * dims.x_stride;  // (width)
    const float* up = gate + dims.width;          // (width)
    float* yi = y + row * dims.width;
    vec::for_each_vector(width, [&](auto at, size_t j) {
      at.store(hn::Mul(vec::silu(at.load(gate + j)), at.load(up + j)), yi + j);
    });
  }
}

void gate_rows_vjp(const SwigluDims& dims, int64_t begin, int64_t end, const float* x,
                   const float* dy, float* dx) {
  const auto width = static_cast<size_t>(dims.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = x + row * dims.x_stride;
    const float* up = gate + dims.width;
    const float* dyi = dy + row * dims.dy_stride;
    float* dgate = dx + row * 2 * dims.width;
    float* dup = dgate + dims.width;
    vec::for_each_vector(width, [&](auto at, size_t j) {
      const vec::F32 g = at.load(gate + j);
      const vec::F32 s = vec::sigmoid(g);
      const vec::F32 v = at.load(dyi + j);
      at.store(hn::Mul(hn::Mul(v, at.load(up + j)), vec::silu_slope(g, s)), dgate + j);
      at.store(hn::Mul(v, hn::Mul(g, s)), dup + j);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(gate_rows);
HWY_EXPORT(gate_rows_vjp);

void swiglu_rows(const SwigluDims& dims, int64_t begin, int64_t end, const float* x, float* y) {
  HWY_DYNAMIC_DISPATCH(gate_rows)(dims, begin, end, x, y);
}

void swiglu_rows_vjp(const SwigluDims& dims, int64_t begin, int64_t end, const float* x,
                     const float* dy, float* dx) {
  HWY_DYNAMIC_DISPATCH(gate_rows_vjp)(dims, begin, end, x, dy, dx);
}

void swiglu(ThreadPool& threads, const SwigluDims& dims, const float* x, float* y) {
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width,
                       [&](int64_t begin, int64_t end) { swiglu_rows(dims, begin, end, x, y); });
}

void swiglu_vjp(ThreadPool& threads, const SwigluDims& dims, const float* x, const float* dy,
                float* dx) {
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width, [&](int64_t begin, int64_t end) {
    swiglu_rows_vjp(dims, begin, end, x, dy, dx);
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
