// The norm of every head against the reference on strided rows, and its gradient against complex
// step.

#include "braid/ops/l2_norm/cases.h"
#include "braid/ops/l2_norm/l2_norm.h"
#include "braid/ops/l2_norm/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

TEST(L2Norm, MatchesReferenceWithGradientOnStridedRows) {
  Context ctx({.threads = 2, .poison = true});
  for (const auto& [rows, heads, size] : cases::kL2NormTest) {
    const int64_t width = heads * size;
    Tensor x = randn({rows, width + 3}, 1, 0.3f).slice_columns(1, 1 + width);
    const auto at = values(x), dy = values(randn({rows, width}, 2));
    const auto n = static_cast<size_t>(size);
    const L2NormOptions options{.heads = heads, .scale = 0.25f, .eps = 0.01f};
    const double eps = static_cast<double>(options.eps), tol = tolerance(DType::kF32, size);
    Tape tape;
    tape.watch(x);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = l2_norm(taped, x, options);
    expect_close(y, reference::l2_norm(at, n, 0.25, eps), tol, "y");
    tape.backward(ctx, {y}, {randn({rows, width}, 2)});
    if (rows > 5) continue;
    const auto dx = complex_step(at, [&](const std::vector<Complex>& z) {
      return dot(reference::l2_norm(z, n, 0.25, eps), dy);
    });
    expect_close(tape.grad(x), dx, tol, "dx");
  }
}

TEST(L2Norm, RefusesHeadsThatDoNotDivide) {
  Context ctx;
  EXPECT_THROW(l2_norm(ctx, randn({2, 6}, 1), {.heads = 4}), Error);
}

}  // namespace
}  // namespace braid
