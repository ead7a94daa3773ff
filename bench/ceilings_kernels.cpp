#include "bench/ceilings_kernels.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ceilings_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "braid/simd/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace braid::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int kChains = 12;

float read_all(const uint8_t* data, int64_t bytes) {
  const hn::Repartition<uint32_t, D> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* words = reinterpret_cast<const uint32_t*>(data);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < bytes / 4; i += 4 * lanes) {
    s0 = hn::Or(s0, hn::LoadU(d, words + i));
    s1 = hn::Or(s1, hn::LoadU(d, words + i + lanes));
    s2 = hn::Or(s2, hn::LoadU(d, words + i + 2 * lanes));
    s3 = hn::Or(s3, hn::LoadU(d, words + i + 3 * lanes));
  }
  const auto sum = hn::Or(hn::Or(s0, s1), hn::Or(s2, s3));
  return static_cast<float>(hn::GetLane(hn::SumOfLanes(d, sum)));
}

float f32_multiply_adds(int64_t steps) {
  const D d;
  V sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = hn::Set(d, static_cast<float>(i));
  const V a = hn::Set(d, 0.5f), b = hn::Set(d, 1.0f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = hn::MulAdd(sum[i], a, b);
  }
  V total = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) total = hn::Add(total, sum[i]);
  return hn::GetLane(hn::SumOfLanes(d, total));
}

double f32_operations_per_step() { return 2.0 * kChains * static_cast<double>(hn::Lanes(D())); }

}  // namespace braid::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::bench {

HWY_EXPORT(read_all);
HWY_EXPORT(f32_multiply_adds);
HWY_EXPORT(f32_operations_per_step);

float read_all(const uint8_t* data, int64_t bytes) {
  return HWY_DYNAMIC_DISPATCH(read_all)(data, bytes);
}
float f32_multiply_adds(int64_t steps) { return HWY_DYNAMIC_DISPATCH(f32_multiply_adds)(steps); }
double f32_operations_per_step() { return HWY_DYNAMIC_DISPATCH(f32_operations_per_step)(); }

#if defined(__x86_64__)
namespace {
constexpr int kDotChains = 12;

__attribute__((target("avx512f,avx512bf16"))) float dot_chains(int64_t steps) {
  __m512 sum[kDotChains];
#pragma GCC unroll 16
  for (int i = 0; i < kDotChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto a = (__m512bh)_mm512_set1_epi32(0x3f803f00);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kDotChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
  }
  __m512 total = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kDotChains; ++i) total = _mm512_add_ps(total, sum[i]);
  return _mm512_reduce_add_ps(total);
}
}  // namespace

float bf16_multiply_adds(int64_t steps) {
  return simd::uses_bf16_dot() ? dot_chains(steps) : f32_multiply_adds(steps);
}
double bf16_operations_per_step() {
  return simd::uses_bf16_dot() ? 4.0 * 16 * kDotChains : f32_operations_per_step();
}
#else
float bf16_multiply_adds(int64_t steps) { return f32_multiply_adds(steps); }
double bf16_operations_per_step() { return f32_operations_per_step(); }
#endif

}  // namespace braid::bench
#endif
