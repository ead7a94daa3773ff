// Loads and stores of partial vectors, and row loops that treat the tail of a row with the same
// vector code as its body, so that the bits of an element never depend on where it lies.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_SIMD_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_SIMD_VECTOR_INL_H_
#undef BRAID_SIMD_VECTOR_INL_H_
#else
#define BRAID_SIMD_VECTOR_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "braid/simd/targets.h"
// After targets.h, which it must see.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace braid::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::ScalableTag<float>;
using F32 = hn::Vec<F32Tag>;

/// The first n < Lanes elements, zero in the other lanes. Touches nothing beyond them.
HWY_INLINE F32 load_partial(F32Tag d, const float* p, size_t n) {
#if HWY_TARGET == HWY_AVX3
  return hn::MaskedLoad(hn::FirstN(d, n), d, p);
#else
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  std::memcpy(buffer, p, n * sizeof(float));
  return hn::Load(d, buffer);
#endif
}

HWY_INLINE void store_partial(F32 v, F32Tag d, float* p, size_t n) {
#if HWY_TARGET == HWY_AVX3
  hn::BlendedStore(v, hn::FirstN(d, n), d, p);
#else
  HWY_ALIGN float buffer[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(v, d, buffer);
  std::memcpy(p, buffer, n * sizeof(float));
#endif
}

/// Access to one whole vector of a row ...
struct Whole {
  HWY_INLINE F32 load(const float* p) const { return hn::LoadU(F32Tag(), p); }
  HWY_INLINE void store(F32 v, float* p) const { hn::StoreU(v, F32Tag(), p); }
  /// v, but `other` in the lanes past the end.
  HWY_INLINE F32 keep(F32 v, F32) const { return v; }
};
/// ... or to the `n` elements left at its end. Loads give zero past it.
struct Tail {
  size_t n;
  HWY_INLINE F32 load(const float* p) const { return load_partial(F32Tag(), p, n); }
  HWY_INLINE void store(F32 v, float* p) const { store_partial(v, F32Tag(), p, n); }
  HWY_INLINE F32 keep(F32 v, F32 other) const {
    return hn::IfThenElse(hn::FirstN(F32Tag(), n), v, other);
  }
};

/// Calls body(access, i) for each vector of a row of `count` elements, `i` being its first element.
template <class Body>
HWY_INLINE void for_each_vector(size_t count, Body&& body) {
  const size_t lanes = hn::Lanes(F32Tag());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) body(Whole{}, i);
  if (i < count) body(Tail{count - i}, i);
}

/// The sum over a row of what body(access, i, sum) adds to `sum`: four chains taken in turn, then
/// one fixed tree. The order is a function of `count` alone. `body` must add zero in lanes past the
/// end (loads give zeros there).
template <class Body>
HWY_INLINE float sum_over_row(size_t count, Body&& body) {
  const F32Tag d;
  const size_t lanes = hn::Lanes(d);
  F32 s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = body(Whole{}, i, s0);
    s1 = body(Whole{}, i + lanes, s1);
    s2 = body(Whole{}, i + 2 * lanes, s2);
    s3 = body(Whole{}, i + 3 * lanes, s3);
  }
  if (i + lanes <= count) s0 = body(Whole{}, i, s0), i += lanes;
  if (i + lanes <= count) s1 = body(Whole{}, i, s1), i += lanes;
  if (i + lanes <= count) s2 = body(Whole{}, i, s2), i += lanes;
  if (i < count) s3 = body(Tail{count - i}, i, s3);
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

}  // namespace braid::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
