// Goal: the gated norm equals its reference in both orders, with gradients, whatever the threads.
// Method: naive float64 loop, complex step on it.

#include <gtest/gtest.h>

#include <string>

#include "braid/core/tape.h"
#include "braid/ops/gated_rms_norm/cases.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/gated_rms_norm/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::Complex;

struct Problem {
  Tensor y, z, w, dout;
};

Problem make_problem(const GatedRmsNormCase& c, uint64_t seed) {
  const Tensor both = test::randn({c.rows, 2 * c.width + 1}, seed, 2.0f);
  return {both.slice_columns(1, c.width + 1), both.slice_columns(c.width + 1, 2 * c.width + 1),
          test::randn({c.width}, seed + 1), test::randn({c.rows, c.width}, seed + 2)};
}

std::vector<Tensor> gradients_of(Context& base, Problem p, const GatedRmsNormOptions& options) {
  Tape tape;
  Context ctx = base.with_tape(&tape);
  Tensor* const leaves[] = {&p.y, &p.z, &p.w};
  for (Tensor* leaf : leaves) tape.watch(*leaf);
  const Tensor out = gated_rms_norm(ctx, p.y, p.z, p.w, options);
  tape.backward(base, {out}, {p.dout});
  std::vector<Tensor> grads;
  for (const Tensor* leaf : leaves) grads.push_back(tape.grad(*leaf));
  return grads;
}

TEST(GatedRmsNorm, MatchesTheReference) {
  uint64_t seed = 1;
  for (const GatedRmsNormCase& c : gated_rms_norm_test_cases()) {
    for (const bool norm_first : {false, true}) {
      const Problem p = make_problem(c, seed += 10);
      Context ctx({.threads = 2, .poison = true});
      const Tensor got = gated_rms_norm(
          ctx, p.y, p.z, p.w, {.groups = c.groups, .eps = 1e-5f, .norm_before_gate = norm_first});
      const auto want =
          reference::gated_rms_norm(test::values(p.y), test::values(p.z), test::values(p.w),
                                    c.groups, static_cast<double>(1e-5f), norm_first);
      if (c.rows > 0) {
        test::expect_close(got, want, test::tolerance(DType::kF32, c.width / c.groups), "out");
      }
    }
  }
}

TEST(GatedRmsNorm, GradientsMatchComplexStep) {
  for (const GatedRmsNormCase& c : {GatedRmsNormCase{1, 3, 1}, {5, 6, 2}, {35, 8, 1}}) {
    for (const bool norm_first : {false, true}) {
      const GatedRmsNormOptions options{
          .groups = c.groups, .eps = 0.01f, .norm_before_gate = norm_first};
      const Problem p = make_problem(c, 5);
      Context ctx({.threads = 2, .poison = true});
      const auto got = gradients_of(ctx, p, options);
      for (size_t which = 0; which < 3; ++which) {
        std::vector<Complex> fields[] = {test::as<Complex>(test::values(p.y)),
                                         test::as<Complex>(test::values(p.z)),
                                         test::as<Complex>(test::values(p.w))};
        const auto loss = [&](const std::vector<Complex>& v) {
          fields[which] = v;
          return test::dot(reference::gated_rms_norm(fields[0], fields[1], fields[2], c.groups,
                                                     static_cast<double>(options.eps), norm_first),
                           test::values(p.dout));
        };
        const auto at = test::values(which == 0 ? p.y : which == 1 ? p.z : p.w);
        const std::string what = "gradient " + std::to_string(which);
        test::expect_close(got[which], test::complex_step(at, loss),
                           test::tolerance(DType::kF32, c.rows + c.width), what.c_str());
      }
    }
  }
}

TEST(GatedRmsNorm, AWeightOfOneGroupServesAllAndAnAbsentOneIsOnes) {
  constexpr int64_t kGroups = 3, kSize = 17;
  Problem p = make_problem({70, kGroups * kSize, kGroups}, 15);
  Context ctx({.threads = 2, .poison = true});
  const GatedRmsNormOptions options{.groups = kGroups, .norm_before_gate = true};
  std::vector<float> tiled;
  for (int64_t g = 0; g < kGroups; ++g) {
    for (int64_t i = 0; i < kSize; ++i) tiled.push_back(p.w.f32()[i]);
  }
  Problem shared = p;
  p.w = host_tensor(tiled, {kGroups * kSize});
  shared.w = host_tensor(std::vector<float>(tiled.begin(), tiled.begin() + kSize), {kSize});
  EXPECT_TRUE(test::same_bits(gated_rms_norm(ctx, p.y, p.z, shared.w, options),
                              gated_rms_norm(ctx, p.y, p.z, p.w, options)));
  const auto want = gradients_of(ctx, p, options), got = gradients_of(ctx, shared, options);
  EXPECT_TRUE(test::same_bits(got[0], want[0]) && test::same_bits(got[1], want[1]));
  const auto each = test::values(want[2]);
  std::vector<double> sum(kSize, 0.0);
  for (size_t i = 0; i < each.size(); ++i) sum[i % kSize] += each[i];
  test::expect_close(got[2], sum, test::tolerance(DType::kF32, 70 * kGroups), "dw");

  const Tensor ones = host_tensor(std::vector<float>(kSize, 1.0f), {kSize});
  EXPECT_TRUE(test::same_bits(gated_rms_norm(ctx, p.y, p.z, {}, options),
                              gated_rms_norm(ctx, p.y, p.z, ones, options)));
}

TEST(GatedRmsNorm, BitsDependOnNeitherThreadsNorOtherRows) {
  const Problem p = make_problem({100, 75, 3}, 9);
  Context one({.threads = 1}), three({.threads = 3});
  const GatedRmsNormOptions options{.groups = 3};
  const Tensor want = gated_rms_norm(one, p.y, p.z, p.w, options);
  EXPECT_TRUE(test::same_bits(gated_rms_norm(three, p.y, p.z, p.w, options), want));
  for (const int64_t row : {0, 41, 99}) {
    const Tensor alone = gated_rms_norm(three, p.y.slice_rows(row, row + 1),
                                        p.z.slice_rows(row, row + 1), p.w, options);
    EXPECT_TRUE(test::same_bits(alone, want.slice_rows(row, row + 1)));
  }
  const auto serial = gradients_of(one, p, options), threaded = gradients_of(three, p, options);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(test::same_bits(threaded[i], serial[i])) << i;
}

TEST(GatedRmsNorm, RefusesWrongShapes) {
  const Problem p = make_problem({4, 6, 1}, 1);
  Context ctx({.threads = 1});
  EXPECT_THROW(gated_rms_norm(ctx, p.y, p.w, p.w), Error);
  EXPECT_THROW(gated_rms_norm(ctx, p.y, p.z, p.y), Error);
  EXPECT_THROW(gated_rms_norm(ctx, p.y, p.z, p.w, {.groups = 4}), Error);
}

}  // namespace
}  // namespace braid
