// 2^x for x <= 0 on float32 vectors. Compiled once per instruction set: include after
// hwy/foreach_target.h.

#if defined(BRAID_OPS_ATTENTION_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_ATTENTION_EXP2_INL_H_
#undef BRAID_OPS_ATTENTION_EXP2_INL_H_
#else
#define BRAID_OPS_ATTENTION_EXP2_INL_H_
#endif

#include "braid/simd/targets.h"
// After targets.h, which it must see.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Relative error below 2^-23 (a little above one rounding); exactly 1 at 0, exactly 0 from -127
/// down; NaN stays NaN. The polynomial interpolates (2^r - 1) / r at Chebyshev nodes of
/// [-1/2, 1/2].
template <class D>
HWY_INLINE hn::Vec<D> exp2_nonpositive(D d, hn::Vec<D> x) {
  const hn::RebindToSigned<D> di;
  // In this order a NaN wins on x86.
  x = hn::Max(hn::Set(d, -127.0f), x);
  // Adding 1.5 * 2^23 rounds to an integer n and leaves it in the low bits.
  const auto magic = hn::Set(d, 12582912.0f);
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 0.000154531634f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.00133908633f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.00961808302f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0555035695f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.240226507f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.693147182f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  // Times 2^n by way of the exponent's bits; at n = -127 nothing is left of 1.
  const auto power = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), power));
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
