// sine against its reference, far arguments included, and its gradients against complex step.

#include "braid/ops/sine/cases.h"
#include "braid/ops/sine/reference.h"
#include "braid/ops/sine/sine.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

TEST(Sine, MatchesReferenceOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, width] : cases::kSineTest) {
    const Tensor x = randn({rows, width + 3}, 1, 4.0f).slice_columns(1, 1 + width);
    // Powers of two, so that the argument is exact however large.
    Tensor f = randn({width}, 2);
    for (int64_t j = 0; j < width; ++j) f.f32()[j] = static_cast<float>(1 << (j % 9)) / 4;
    expect_close(sine(ctx, x, f), reference::sine(values(x), values(f)), tolerance(DType::kF32, 1),
                 "y");
  }
}

TEST(Sine, GradientsMatchComplexStep) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  Tape tape;
  Tensor x = randn({7, 37}, 1), f = randn({37}, 2);
  const Tensor dy = randn({7, 40}, 3).slice_columns(0, 37);
  tape.watch(x);
  tape.watch(f);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = sine(taped, x, f);
  tape.backward(ctx, {y}, {dy});
  const auto dx = complex_step(values(x), [&](const std::vector<Complex>& z) {
    return dot(reference::sine(z, as<Complex>(values(f))), values(dy));
  });
  const auto df = complex_step(values(f), [&](const std::vector<Complex>& z) {
    return dot(reference::sine(as<Complex>(values(x)), z), values(dy));
  });
  expect_close(tape.grad(x), dx, tolerance(DType::kF32, 4), "dx");
  expect_close(tape.grad(f), df, tolerance(DType::kF32, 7), "dfrequency");
}

TEST(Sine, RefusesOtherShapes) {
  Context ctx;
  EXPECT_THROW(sine(ctx, randn({2, 3}, 1), randn({2}, 1)), Error);
  EXPECT_THROW(sine(ctx, randn({3}, 1), randn({3}, 1)), Error);
}

}  // namespace
}  // namespace braid
