// add, add_into, scale and multiply against their references, their gradients against complex step,
// and that adding in place spares what a tape has kept.

#include "braid/ops/elementwise/cases.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/elementwise/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

const double kTolerance = tolerance(DType::kF32, 1);

TEST(Elementwise, MatchesReferenceOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, width] : cases::kElementwiseTest) {
    const Tensor a = randn({rows, width + 3}, 1).slice_columns(1, 1 + width);
    const Tensor b = randn({rows, width}, 2);
    const auto sum = reference::add(values(a), values(b));
    expect_close(add(ctx, a, b), sum, kTolerance, "a + b");
    expect_close(add(ctx, b, b), reference::scale(values(b), 2), kTolerance, "b + b");
    expect_close(scale(ctx, a, -0.3f), reference::scale(values(a), -0.3f), kTolerance, "scale");
    expect_close(multiply(ctx, a, b), reference::multiply(values(a), values(b)), kTolerance, "a b");
    Tensor acc = a;
    add_into(ctx, acc, b);
    expect_close(acc, sum, kTolerance, "add_into");
    EXPECT_EQ(acc.raw(), a.raw());
  }
}

TEST(Elementwise, GradientsMatchComplexStep) {
  Context ctx;
  Tape tape;
  Tensor a = randn({3, 5}, 1), b = randn({3, 5}, 2);
  const auto as_values = values(a), bs = values(b), dy = values(randn({3, 5}, 3));
  tape.watch(a);
  tape.watch(b);
  Context taped = ctx.with_tape(&tape);
  Tensor h = a;
  add_into(taped, h, scale(taped, b, 3.0f));
  EXPECT_EQ(values(a), as_values) << "the tape's inputs must stay";
  tape.backward(ctx, {h}, {randn({3, 5}, 3)});
  const auto da = complex_step(as_values, [&](const std::vector<Complex>& z) {
    return dot(reference::add(z, reference::scale(as<Complex>(bs), 3)), dy);
  });
  const auto db = complex_step(bs, [&](const std::vector<Complex>& z) {
    return dot(reference::add(as<Complex>(as_values), reference::scale(z, 3)), dy);
  });
  expect_close(tape.grad(a), da, kTolerance, "da");
  expect_close(tape.grad(b), db, kTolerance, "db");
}

TEST(Elementwise, GradientsOfAProductAndASquare) {
  Context ctx;
  Tape tape;
  Tensor a = randn({3, 7}, 1).slice_columns(1, 6), b = randn({3, 5}, 2);
  const auto a_values = values(a), b_values = values(b), dy = values(randn({3, 5}, 3));
  tape.watch(a);
  tape.watch(b);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = multiply(taped, a, multiply(taped, b, b));
  tape.backward(ctx, {y}, {randn({3, 5}, 3)});
  const auto da = complex_step(a_values, [&](const std::vector<Complex>& z) {
    const auto square = reference::multiply(as<Complex>(b_values), as<Complex>(b_values));
    return dot(reference::multiply(z, square), dy);
  });
  const auto db = complex_step(b_values, [&](const std::vector<Complex>& z) {
    return dot(reference::multiply(as<Complex>(a_values), reference::multiply(z, z)), dy);
  });
  expect_close(tape.grad(a), da, kTolerance, "da");
  expect_close(tape.grad(b), db, kTolerance, "db");
}

TEST(Elementwise, ScalesRowsOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, width] : cases::kElementwiseTest) {
    const Tensor x = randn({rows, width + 3}, 1).slice_columns(1, 1 + width);
    const Tensor s = randn({rows, 1}, 2);
    expect_close(scale_rows(ctx, x, s), reference::scale_rows(values(x), values(s)), kTolerance,
                 "scale_rows");
  }
}

TEST(Elementwise, GradientsOfScaledRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  Tape tape;
  Tensor x = randn({3, 70}, 1).slice_columns(1, 66), s = randn({3}, 2);
  const auto xs = values(x), ss = values(s), dy = values(randn({3, 65}, 3));
  tape.watch(x);
  tape.watch(s);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = scale_rows(taped, x, s);
  tape.backward(ctx, {y}, {randn({3, 65}, 3)});
  const auto dx = complex_step(xs, [&](const std::vector<Complex>& z) {
    return dot(reference::scale_rows(z, as<Complex>(ss)), dy);
  });
  const auto ds = complex_step(ss, [&](const std::vector<Complex>& z) {
    return dot(reference::scale_rows(as<Complex>(xs), z), dy);
  });
  expect_close(tape.grad(x), dx, kTolerance, "dx");
  expect_close(tape.grad(s), ds, tolerance(DType::kF32, 65), "ds");
}

TEST(Elementwise, RefusesOtherShapes) {
  Context ctx;
  EXPECT_THROW(scale_rows(ctx, randn({2, 3}, 1), randn({3}, 1)), Error);
  Tensor a = randn({2, 3}, 1);
  EXPECT_THROW(add(ctx, a, randn({3, 2}, 1)), Error);
  EXPECT_THROW(multiply(ctx, a, randn({3, 2}, 1)), Error);
  EXPECT_THROW(add_into(ctx, a, randn({2, 2}, 1)), Error);
}

}  // namespace
}  // namespace braid
