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
  for (int64_t i = 0; i < n; i += lanes()) {
    hn::StoreU(hn::Mul(factor, load(x + i, n - i)), D(), y + i);
  }
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
