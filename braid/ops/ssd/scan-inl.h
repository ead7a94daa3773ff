// What the scans share: partial vectors, scaled copies into scratch, the order of tokens.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_SSD_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_SSD_SCAN_INL_H_
#undef BRAID_OPS_SSD_SCAN_INL_H_
#else
#define BRAID_OPS_SSD_SCAN_INL_H_
#endif

#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

constexpr bool kManyRegisters = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(D())); }
HWY_INLINE int64_t pad(int64_t n) { return (n + lanes() - 1) / lanes() * lanes(); }

HWY_INLINE V load(const float* p, int64_t n) {
  return n >= lanes() ? hn::LoadU(D(), p) : sv::load_partial(D(), p, static_cast<size_t>(n));
}
HWY_INLINE void store(V v, float* p, int64_t n) {
  if (n >= lanes()) {
    hn::StoreU(v, D(), p);
  } else {
    sv::store_partial(v, D(), p, static_cast<size_t>(n));
  }
}

// y[0, padded) <- scale x[0, n), then zeros.
HWY_INLINE void copy_scaled(const float* x, int64_t n, float scale, float* y) {
  const V factor = hn::Set(D(), scale);
  sv::for_each_vector(static_cast<size_t>(n), [&](auto access, size_t i) {
    hn::StoreU(hn::Mul(factor, access.load(x + i)), D(), y + i);
  });
}

// The sums over the lanes of four vectors: a tree that is the same for each of them.
HWY_INLINE void sum_lanes_of_four(V a0, V a1, V a2, V a3, float* y) {
#if HWY_TARGET == HWY_SCALAR
  y[0] = hn::GetLane(a0);
  y[1] = hn::GetLane(a1);
  y[2] = hn::GetLane(a2);
  y[3] = hn::GetLane(a3);
#else
  const D d;
  const V s02 = hn::Add(hn::InterleaveLower(d, a0, a2), hn::InterleaveUpper(d, a0, a2));
  const V s13 = hn::Add(hn::InterleaveLower(d, a1, a3), hn::InterleaveUpper(d, a1, a3));
  const V s = hn::Add(hn::InterleaveLower(d, s02, s13), hn::InterleaveUpper(d, s02, s13));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<D> d2;
  const hn::Half<hn::Half<D> > d4;
  const auto s2 = hn::Add(hn::LowerHalf(d2, s), hn::UpperHalf(d2, s));
  hn::StoreU(hn::Add(hn::LowerHalf(d4, s2), hn::UpperHalf(d4, s2)), d4, y);
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<D> d4;
  hn::StoreU(hn::Add(hn::LowerHalf(d4, s), hn::UpperHalf(d4, s)), d4, y);
#else
  hn::StoreU(s, d, y);
#endif
#endif
}

// The tokens [begin, begin + count) of a sequence of `length` rows from `first`, in scan order.
struct Block {
  int64_t first, length, begin, count;
  bool reverse;

  int64_t row(int64_t t) const {
    return reverse ? first + length - 1 - (begin + t) : first + begin + t;
  }
  // Decay taken on the way to token t: its own, or backwards that of the token after it.
  float decay(const float* decay, int64_t heads, int64_t h, int64_t t) const {
    if (!reverse) return decay[row(t) * heads + h];
    return begin + t == 0 ? 1.0f : decay[(row(t) + 1) * heads + h];
  }
};

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
