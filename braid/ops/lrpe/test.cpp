// Turned channels against the reference, far out along a sequence too, and both gradients against
// complex step.

#include "braid/ops/lrpe/cases.h"
#include "braid/ops/lrpe/lrpe.h"
#include "braid/ops/lrpe/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

TEST(Lrpe, MatchesReferenceWithGradientsOnStridedRows) {
  Context ctx({.threads = 2, .poison = true});
  for (const auto& [tokens, heads, dim] : cases::kLrpeTest) {
    for (const int64_t start : {0, 1000000}) {
      const int64_t width = heads * dim;
      Tensor x = randn({tokens, width + 3}, 1).slice_columns(1, 1 + width);
      Tensor theta = randn({heads, dim}, 2);
      const Tensor dy = randn({tokens, 2 * width}, 3);
      const auto x_values = values(x), theta_values = values(theta), dys = values(dy);
      std::vector<int64_t> positions;
      for (int64_t t = 0; t < tokens; ++t) positions.push_back(start + t);
      const auto n = static_cast<size_t>(dim);
      Tape tape;
      tape.watch(x);
      tape.watch(theta);
      Context taped = ctx.with_tape(&tape);
      const Tensor y = lrpe(taped, x, theta, SequenceBatch::single(tokens, start));
      const double tol = tolerance(DType::kF32, 1);
      expect_close(y, reference::lrpe(x_values, theta_values, positions, n), tol, "y");
      tape.backward(ctx, {y}, {dy});
      const auto dx = complex_step(x_values, [&](const std::vector<Complex>& z) {
        return dot(reference::lrpe(z, as<Complex>(theta_values), positions, n), dys);
      });
      const auto d_theta = complex_step(theta_values, [&](const std::vector<Complex>& z) {
        return dot(reference::lrpe(as<Complex>(x_values), z, positions, n), dys);
      });
      expect_close(tape.grad(x), dx, tol, "dx");
      expect_close(tape.grad(theta), d_theta, tolerance(DType::kF32, tokens), "d theta");
    }
  }
}

TEST(Lrpe, RefusesWrongShapes) {
  Context ctx;
  const Tensor x = randn({4, 6}, 1);
  EXPECT_THROW(lrpe(ctx, x, randn({2, 4}, 1), SequenceBatch::single(4)), Error);
  EXPECT_THROW(lrpe(ctx, x, randn({2, 3}, 1), SequenceBatch::single(3)), Error);
}

}  // namespace
}  // namespace braid
