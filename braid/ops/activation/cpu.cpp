#include "braid/core/thread_pool.h"
#include "braid/ops/activation/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/activation/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

HWY_INLINE vec::F32 constant(float value) { return hn::Set(vec::F32Tag(), value); }

// max(x, 0), but NaN for NaN.
HWY_INLINE vec::F32 positive_part(vec::F32 x) {
  return hn::IfThenElse(hn::Le(x, constant(0)), constant(0), x);
}

// The slope of the sigmoid, e / (1 + e)^2 with e = e^-|x|: no cancellation on either side.
HWY_INLINE vec::F32 sigmoid_slope(vec::F32 x) {
  const vec::F32 e = vec::exp(hn::Neg(hn::Abs(x)));
  const vec::F32 sum = hn::Add(constant(1), e);
  return hn::Div(e, hn::Mul(sum, sum));
}

// `value` is f(x), `slope` f'(x).
struct Exp {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return vec::exp(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) { return vec::exp(x); }
};
struct Sigmoid {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return vec::sigmoid(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) { return sigmoid_slope(x); }
};
struct Tanh {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return vec::tanh(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) {
    return hn::Mul(constant(4), sigmoid_slope(hn::Add(x, x)));
  }
};
struct Silu {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return vec::silu(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) { return vec::silu_slope(x, vec::sigmoid(x)); }
};
struct Softplus {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return vec::softplus(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) { return vec::sigmoid(x); }
};
struct Relu {
  static HWY_INLINE vec::F32 value(vec::F32 x) { return positive_part(x); }
  static HWY_INLINE vec::F32 slope(vec::F32 x) {
    const vec::F32 p = positive_part(x);
    return hn::IfThenElse(hn::Gt(p, constant(0)), constant(1), p);
  }
};
struct ReluSquared {
  static HWY_INLINE vec::F32 value(vec::F32 x) {
    const vec::F32 p = positive_part(x);
    return hn::Mul(p, p);
  }
  static HWY_INLINE vec::F32 slope(vec::F32 x) {
    const vec::F32 p = positive_part(x);
    return hn::Add(p, p);
  }
};
struct EluPlusOne {
  static HWY_INLINE vec::F32 value(vec::F32 x) {
    return hn::IfThenElse(hn::Gt(x, constant(0)), hn::Add(x, constant(1)), vec::exp(x));
  }
  static HWY_INLINE vec::F32 slope(vec::F32 x) {
    return hn::IfThenElse(hn::Gt(x, constant(0)), constant(1), vec::exp(x));
  }
};

template <class F>
void map_rows(const ActivationDims& dims, int64_t begin, int64_t end, const float* x,
              const float* dy, float* out) {
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x + row * dims.x_stride;
    float* to = out + row * dims.width;
    vec::for_each_vector(static_cast<size_t>(dims.width), [&](auto at, size_t j) {
      const vec::F32 v = at.load(from + j);
      if (dy == nullptr) {
        at.store(F::value(v), to + j);
      } else {
        at.store(hn::Mul(at.load(dy + row * dims.dy_stride + j), F::slope(v)), to + j);
      }
    });
  }
}

// The value where dy is null, otherwise dy times the slope.
void activation_rows(const ActivationDims& dims, int64_t begin, int64_t end, const float* x,
                     const float* dy, float* out) {
  switch (dims.kind) {
    case Activation::kExp:
      return map_rows<Exp>(dims, begin, end, x, dy, out);
    case Activation::kSigmoid:
      return map_rows<Sigmoid>(dims, begin, end, x, dy, out);
    case Activation::kTanh:
      return map_rows<Tanh>(dims, begin, end, x, dy, out);
    case Activation::kSilu:
      return map_rows<Silu>(dims, begin, end, x, dy, out);
    case Activation::kSoftplus:
      return map_rows<Softplus>(dims, begin, end, x, dy, out);
    case Activation::kRelu:
      return map_rows<Relu>(dims, begin, end, x, dy, out);
    case Activation::kReluSquared:
      return map_rows<ReluSquared>(dims, begin, end, x, dy, out);
    case Activation::kEluPlusOne:
      return map_rows<EluPlusOne>(dims, begin, end, x, dy, out);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(activation_rows);

void activation_rows(const ActivationDims& dims, int64_t begin, int64_t end, const float* x,
                     const float* dy, float* out) {
  HWY_DYNAMIC_DISPATCH(activation_rows)(dims, begin, end, x, dy, out);
}

void activation(ThreadPool& threads, const ActivationDims& dims, const float* x, float* y) {
  activation_vjp(threads, dims, x, nullptr, y);
}

void activation_vjp(ThreadPool& threads, const ActivationDims& dims, const float* x,
                    const float* dy, float* dx) {
  if (dims.width == 0) return;
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width, [&](int64_t begin, int64_t end) {
    activation_rows(dims, begin, end, x, dy, dx);
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
