// scale_columns against its reference on strided rows, its gradient against complex step.

#include "braid/ops/scale_columns/cases.h"
#include "braid/ops/scale_columns/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

const double kTolerance = tolerance(DType::kF32, 1);

int64_t width_of(const std::vector<ColumnScale>& segments) {
  int64_t width = 0;
  for (const ColumnScale& segment : segments) width += segment.width;
  return width;
}

TEST(ScaleColumns, MatchesReferenceOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, segments] : cases::kScaleColumnsTest) {
    const int64_t width = width_of(segments);
    const Tensor x = randn({rows, width + 3}, 1).slice_columns(1, 1 + width);
    expect_close(scale_columns(ctx, x, segments), reference::scale_columns(values(x), segments),
                 kTolerance, "y");
  }
}

TEST(ScaleColumns, GradientMatchesComplexStep) {
  Context ctx;
  const auto& [rows, segments] = cases::kScaleColumnsTest[1];
  Tape tape;
  Tensor x = randn({rows, width_of(segments)}, 1);
  const Tensor dy = randn(x.shape(), 2);
  tape.watch(x);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = scale_columns(taped, x, segments);
  tape.backward(ctx, {y}, {dy});
  const auto want = complex_step(values(x), [&, &s = segments](const std::vector<Complex>& z) {
    return dot(reference::scale_columns(z, s), values(dy));
  });
  expect_close(tape.grad(x), want, kTolerance, "dx");
}

TEST(ScaleColumns, RefusesOtherWidths) {
  Context ctx;
  const Tensor x = randn({2, 3}, 1);
  const ColumnScale shorter[] = {{2, 1.0f}}, negative[] = {{4, 1.0f}, {-1, 1.0f}};
  EXPECT_THROW(scale_columns(ctx, x, shorter), Error);
  EXPECT_THROW(scale_columns(ctx, x, negative), Error);
  EXPECT_THROW(scale_columns(ctx, x, std::vector<ColumnScale>(9)), Error);
}

}  // namespace
}  // namespace braid
