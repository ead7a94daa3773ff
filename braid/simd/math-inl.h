// Elementary functions on float32 vectors, to about 2 units in the last place, NaN in NaN out.
// Polynomials interpolate the function at Chebyshev nodes of the stated interval.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_SIMD_MATH_INL_H_
#undef BRAID_SIMD_MATH_INL_H_
#else
#define BRAID_SIMD_MATH_INL_H_
#endif

#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::simd::HWY_NAMESPACE {

/// c[0] + x (c[1] + x (...)).
template <size_t kTerms>
HWY_INLINE F32 polynomial(F32 x, const float (&c)[kTerms]) {
  const F32Tag d;
  F32 sum = hn::Set(d, c[kTerms - 1]);
  for (size_t i = kTerms - 1; i-- > 0;) sum = hn::MulAdd(sum, x, hn::Set(d, c[i]));
  return sum;
}

/// e^x. Results below the smallest normal number are 0.
HWY_INLINE F32 exp(F32 x) {
  const F32Tag d;
  const hn::RebindToSigned<F32Tag> di;
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that the first product is exact. Adding
  // 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const F32 magic = hn::Set(d, 12582912.0f);
  const F32 shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
  const F32 nf = hn::Sub(shifted, magic);
  const auto n = hn::BitCast(di, shifted);
  F32 r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  constexpr float kTail[] = {0.5f, 0.166665770f, 0.0416665547f, 0.00836317307f, 0.00139261761f};
  const F32 y = hn::Add(hn::MulAdd(hn::Mul(r, r), polynomial(r, kTail), r), hn::Set(d, 1.0f));
  // Times 2^n by way of the exponent's bits: the result is normal wherever it is kept.
  const F32 scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(n)));
  const F32 low = hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.3365447f)), hn::Zero(d), scaled);
  // The comparison fails for NaN too: NaN + inf is NaN.
  return hn::IfThenElse(hn::Le(x, hn::Set(d, 88.7228317f)), low, hn::Add(x, hn::Inf(d)));
}

/// 1 / (1 + e^-x), exact in its relative error on both sides.
HWY_INLINE F32 sigmoid(F32 x) {
  const F32Tag d;
  const F32 e = exp(hn::Neg(hn::Abs(x)));
  const F32 one = hn::Set(d, 1.0f);
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

/// x sigmoid(x)
HWY_INLINE F32 silu(F32 x) { return hn::Mul(x, sigmoid(x)); }

/// d silu / dx = s (1 + x (1 - s)), given s = sigmoid(x).
HWY_INLINE F32 silu_slope(F32 x, F32 s) {
  const F32 one = hn::Set(F32Tag(), 1.0f);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), the logarithm as 2 atanh(e / (2 + e)).
HWY_INLINE F32 softplus(F32 x) {
  const F32Tag d;
  const F32 e = exp(hn::Neg(hn::Abs(x)));
  const F32 s = hn::Div(e, hn::Add(e, hn::Set(d, 2.0f)));
  // atanh(s) / s in s^2 on [0, 1/9]
  constexpr float kAtanh[] = {1.0f,         0.333333395f, 0.199993556f,
                              0.143101037f, 0.106992804f, 0.121969534f};
  const F32 log1p = hn::Mul(hn::Add(s, s), polynomial(hn::Mul(s, s), kAtanh));
  const F32 positive = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);
  return hn::Add(positive, log1p);
}

HWY_INLINE F32 tanh(F32 x) {
  const F32Tag d;
  const F32 a = hn::Abs(x);
  // tanh(x) / x in x^2 for |x| <= 5/8, where 1 - e^-2|x| would cancel
  constexpr float kSmall[] = {1.0f,           -0.333332599f, 0.133311141f,
                              -0.0537201077f, 0.0205881915f, -0.00565713519f};
  const F32 small = hn::Mul(x, polynomial(hn::Mul(x, x), kSmall));
  const F32 e = exp(hn::Mul(a, hn::Set(d, -2.0f)));
  const F32 one = hn::Set(d, 1.0f);
  const F32 large = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  return hn::IfThenElse(hn::Gt(a, hn::Set(d, 0.625f)), large, small);
}

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2, and its density phi(x) = e^(-x^2/2) / sqrt(2 pi).
struct Normal {
  F32 cdf, density;
};
HWY_INLINE Normal normal(F32 x) {
  const F32Tag d;
  const F32 a = hn::Abs(x);
  const F32 one = hn::Set(d, 1.0f);
  const F32 e = exp(hn::Mul(hn::Mul(a, a), hn::Set(d, -0.5f)));
  // Phi(-a) e^(a^2/2) in t = 1 / (1 + 0.3 a), for a up to 13.2; beyond it e is 0
  constexpr float kTail[] = {4.17656681e-06f, 0.119591671f,  0.120508772f,    0.104959973f,
                             0.097188839f,    0.0517942306f, -0.00909942827f, 0.117704412f,
                             -0.178489375f,   0.0931947937f, -0.0173580657f};
  const F32 t = hn::Div(one, hn::MulAdd(a, hn::Set(d, 0.3f), one));
  const F32 tail = hn::Mul(e, polynomial(t, kTail));
  const F32 cdf = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
  return {cdf, hn::Mul(e, hn::Set(d, 0.398942280f))};
}

}  // namespace braid::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
