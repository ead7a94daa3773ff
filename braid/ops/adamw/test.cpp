// adamw against its reference in float64 over several steps; global_norm against a plain sum, with
// the same bits for any number of threads.

#include "braid/ops/adamw/adamw.h"
#include "braid/ops/adamw/cases.h"
#include "braid/ops/adamw/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

Tensor zeros(int64_t count) {
  return host_tensor(std::vector<float>(static_cast<size_t>(count)), {count});
}

TEST(AdamW, MatchesReferenceOverSteps) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const int64_t count : cases::kAdamWTest) {
    const Tensor p = randn({count}, 1), m = zeros(count), v = zeros(count);
    auto want_p = values(p), want_m = values(m), want_v = values(v);
    AdamWOptions options{.lr = 0.02f, .weight_decay = 0.3f, .gradient_scale = 0.25f};
    for (options.step = 1; options.step <= 5; ++options.step) {
      const Tensor g = randn({count}, 10 + static_cast<uint64_t>(options.step));
      adamw(ctx, p, g, m, v, options);
      reference::adamw(want_p, values(g), want_m, want_v, options);
    }
    const double tol = tolerance(DType::kF32, 5);
    expect_close(p, want_p, tol, "p");
    expect_close(m, want_m, tol, "m");
    expect_close(v, want_v, tol, "v");
  }
}

TEST(AdamW, RefusesWhatItCannotUpdate) {
  Context ctx;
  const Tensor p = randn({4, 4}, 1);
  EXPECT_THROW(adamw(ctx, p, randn({16}, 1), p, p, {}), Error);
  EXPECT_THROW(adamw(ctx, p, p, p, p, {.step = 0}), Error);
  const Tensor slice = p.slice_columns(0, 2);
  EXPECT_THROW(adamw(ctx, slice, slice, slice, slice, {}), Error);
}

TEST(GlobalNorm, IsExactToRoundingForAnyThreadCount) {
  for (const int64_t count : cases::kAdamWTest) {
    const std::vector<Tensor> tensors{randn({count}, 1), randn({7}, 2)};
    double squares = 0;
    for (const Tensor& x : tensors) {
      for (const double e : values(x)) squares += e * e;
    }
    Context one(ContextOptions{.threads = 1}), two(ContextOptions{.threads = 2});
    const double norm = global_norm(one, tensors);
    expect_close({norm}, {std::sqrt(squares)}, tolerance(DType::kF64, count), "norm");
    EXPECT_EQ(norm, global_norm(two, tensors));
  }
}

TEST(GlobalNorm, ClipsOnlyWhatIsLonger) {
  EXPECT_EQ(clip_factor(0.5, 1), 1);
  EXPECT_EQ(clip_factor(4, 1), 0.25);
  EXPECT_EQ(clip_factor(4, 0), 1);
}

}  // namespace
}  // namespace braid
