#include "braid/simd/bf16_dot.h"

#include <optional>

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/simd/bf16_dot.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::simd::HWY_NAMESPACE {

bool dispatches_avx512() { return HWY_TARGET == HWY_AVX3; }

}  // namespace braid::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::simd {

HWY_EXPORT(dispatches_avx512);

namespace {
std::optional<bool> chosen_by_test;
}  // namespace

#if defined(__x86_64__)
bool has_bf16_dot() {
  static const bool has =
      __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
      __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  return has && HWY_DYNAMIC_DISPATCH(dispatches_avx512)();
}

bool uses_bf16_dot() {
  static const bool is_fast = __builtin_cpu_is("amd") != 0;
  return chosen_by_test.value_or(is_fast) && has_bf16_dot();
}
#else
bool has_bf16_dot() { return false; }
bool uses_bf16_dot() { return false; }
#endif

Bf16DotForTest::Bf16DotForTest(bool use) { chosen_by_test = use; }
Bf16DotForTest::~Bf16DotForTest() { chosen_by_test.reset(); }

}  // namespace braid::simd
#endif
