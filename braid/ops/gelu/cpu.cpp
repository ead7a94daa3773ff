#include "braid/core/thread_pool.h"
#include "braid/ops/gelu/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/gelu/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

// (1 + tanh(u)) / 2 = sigmoid(2u): no cancellation for negative u.
struct TanhForm {
  static constexpr float kLinear = 1.59576912f;   // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.0713548163f;  // 2 sqrt(2 / pi) 0.044715

  HWY_INLINE vec::F32 gate(vec::F32 x) const {
    const vec::F32Tag d;
    const vec::F32 slope = hn::MulAdd(hn::Mul(x, x), hn::Set(d, kCubic), hn::Set(d, kLinear));
    return vec::sigmoid(hn::Mul(x, slope));
  }
  HWY_INLINE vec::F32 value(vec::F32 x) const { return hn::Mul(x, gate(x)); }
  HWY_INLINE vec::F32 slope(vec::F32 x) const {
    const vec::F32Tag d;
    const vec::F32 s = gate(x);
    const vec::F32 du = hn::MulAdd(hn::Mul(x, x), hn::Set(d, 3 * kCubic), hn::Set(d, kLinear));
    const vec::F32 ds = hn::Mul(s, hn::Sub(hn::Set(d, 1.0f), s));
    return hn::MulAdd(hn::Mul(x, ds), du, s);
  }
};

struct ErfForm {
  HWY_INLINE vec::F32 value(vec::F32 x) const { return hn::Mul(x, vec::normal(x).cdf); }
  HWY_INLINE vec::F32 slope(vec::F32 x) const {
    const vec::Normal normal = vec::normal(x);
    return hn::MulAdd(x, normal.density, normal.cdf);
  }
};

template <class Form>
void map_rows(const Form form, const GeluDims& dims, int64_t begin, int64_t end, const float* x,
              const float* dy, float* out) {
  for (int64_t row = begin; row < end; ++row) {
    const float* xi = x + row * dims.x_stride;
    float* to = out + row * dims.width;
    vec::for_each_vector(static_cast<size_t>(dims.width), [&](auto at, size_t j) {
      const vec::F32 v = at.load(xi + j);
      if (dy == nullptr) {
        at.store(form.value(v), to + j);
      } else {
        at.store(hn::Mul(at.load(dy + row * dims.dy_stride + j), form.slope(v)), to + j);
      }
    });
  }
}

// The value where dy is null, otherwise dy times the slope.
void gelu_rows(const GeluDims& dims, int64_t begin, int64_t end, const float* x, const float* dy,
               float* out) {
  if (dims.use_tanh) {
    map_rows(TanhForm{}, dims, begin, end, x, dy, out);
  } else {
    map_rows(ErfForm{}, dims, begin, end, x, dy, out);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(gelu_rows);

void gelu_rows(const GeluDims& dims, int64_t begin, int64_t end, const float* x, const float* dy,
               float* out) {
  HWY_DYNAMIC_DISPATCH(gelu_rows)(dims, begin, end, x, dy, out);
}

void gelu(ThreadPool& threads, const GeluDims& dims, const float* x, float* y) {
  gelu_vjp(threads, dims, x, nullptr, y);
}

void gelu_vjp(ThreadPool& threads, const GeluDims& dims, const float* x, const float* dy,
              float* dx) {
  if (dims.width == 0) return;
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width,
                       [&](int64_t begin, int64_t end) { gelu_rows(dims, begin, end, x, dy, dx); });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
