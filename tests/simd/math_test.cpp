// The vector functions against the double precision library, in units of the last place, over their
// whole range; and at its ends: infinities and NaN.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/simd/math_test.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::HWY_NAMESPACE {
namespace vec = simd::HWY_NAMESPACE;

template <class F>
void map(const std::vector<float>& x, std::vector<float>& y, F&& f) {
  vec::for_each_vector(
      x.size(), [&](auto at, size_t i) { at.store(f(at.load(x.data() + i)), y.data() + i); });
}

void evaluate(int function, const std::vector<float>& x, std::vector<float>& y) {
  if (function == 0) map(x, y, [](vec::F32 v) { return vec::exp(v); });
  if (function == 1) map(x, y, [](vec::F32 v) { return vec::sigmoid(v); });
  if (function == 2) map(x, y, [](vec::F32 v) { return vec::silu(v); });
  if (function == 3) map(x, y, [](vec::F32 v) { return vec::softplus(v); });
  if (function == 4) map(x, y, [](vec::F32 v) { return vec::tanh(v); });
  if (function == 5) map(x, y, [](vec::F32 v) { return vec::normal(v).cdf; });
}

}  // namespace braid::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {
HWY_EXPORT(evaluate);

namespace {

struct Case {
  const char* name;
  double (*want)(double);
  float range;
  double ulps;  // of the result, down to the smallest normal number
  float at_minus_infinity, at_infinity;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
const float kInf = std::numeric_limits<float>::infinity();
const Case kCases[] = {
    {"exp", [](double x) { return std::exp(x); }, 100, 2, 0, kInf},
    {"sigmoid", sigmoid, 100, 4, 0, 1},
    {"silu", [](double x) { return x * sigmoid(x); }, 85, 4, NAN, kInf},
    {"softplus", [](double x) { return std::log1p(std::exp(x)); }, 85, 4, 0, kInf},
    {"tanh", [](double x) { return std::tanh(x); }, 20, 4, -1, 1},
    // the far tail inherits the rounding of x^2 / 2: half an ulp of 18 is 16 ulps of the result
    {"normal_cdf", [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }, 6, 40, 0, 1},
};

std::vector<float> run(int function, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(evaluate)(function, x, y);
  return y;
}

TEST(SimdMath, WithinUlpsOfDouble) {
  for (int f = 0; f < 6; ++f) {
    const Case& c = kCases[f];
    std::vector<float> x;
    for (int i = -200001; i <= 200001; ++i) x.push_back(c.range * static_cast<float>(i) / 200001);
    for (float tiny = 1.0f; tiny > 1e-30f; tiny *= 0.37f) x.push_back(tiny), x.push_back(-tiny);
    const std::vector<float> y = run(f, x);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = c.want(x[i]);
      if (std::abs(want) < 0x1p-126) {
        EXPECT_LE(std::abs(y[i]), 0x1p-126) << c.name << "(" << x[i] << ")";
      } else if (std::abs(want) > std::numeric_limits<float>::max()) {
        EXPECT_TRUE(std::isinf(y[i])) << c.name << "(" << x[i] << ")";
      } else {
        const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
        worst = std::max(worst, std::abs(y[i] - want) / ulp);
      }
    }
    EXPECT_LE(worst, c.ulps) << c.name;
    RecordProperty(c.name, std::to_string(worst));
  }
}

TEST(SimdMath, EndsOfTheRange) {
  for (int f = 0; f < 6; ++f) {
    const Case& c = kCases[f];
    const std::vector<float> y = run(f, {-kInf, kInf, NAN, -1e30f, 1e30f});
    if (!std::isnan(c.at_minus_infinity)) {
      EXPECT_EQ(y[0], c.at_minus_infinity) << c.name;
      EXPECT_EQ(y[3], c.at_minus_infinity) << c.name;
    }
    EXPECT_EQ(y[1], c.at_infinity) << c.name;
    EXPECT_TRUE(std::isnan(y[2])) << c.name;
    EXPECT_GE(y[4], std::min(c.at_infinity, 1e30f)) << c.name;
  }
}

// The same value at every place of a row, whether a whole vector or a tail holds it.
TEST(SimdMath, BitsDoNotDependOnPosition) {
  for (int f = 0; f < 6; ++f) {
    for (size_t n = 1; n < 40; ++n) {
      const std::vector<float> y = run(f, std::vector<float>(n, 0.7311f));
      for (const float v : y) EXPECT_EQ(v, y[0]) << kCases[f].name;
    }
  }
}

}  // namespace
}  // namespace braid
#endif  // HWY_ONCE
