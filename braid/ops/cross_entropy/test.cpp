// softmax_cross_entropy against its reference and its gradient against complex step; ignored
// tokens, large logits, and that the logits' own memory receives the gradient.

#include "braid/ops/cross_entropy/cases.h"
#include "braid/ops/cross_entropy/cross_entropy.h"
#include "braid/ops/cross_entropy/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

// Every third token is ignored, but not the first.
std::vector<int32_t> make_targets(int64_t rows, int64_t classes) {
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < rows; ++i) {
    targets.push_back(i % 3 == 2 ? -100 : static_cast<int32_t>((i * 7919 + 3) % classes));
  }
  return targets;
}

template <class T>
T mean_loss(const std::vector<T>& logits, const std::vector<int32_t>& targets) {
  T sum{};
  double counted = 0;
  for (const T& loss : reference::cross_entropy(logits, targets)) sum += loss;
  for (const int32_t target : targets) counted += target >= 0;
  return sum / counted;
}

TEST(CrossEntropy, MatchesReferenceOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, classes] : cases::kCrossEntropyTest) {
    const Tensor logits = randn({rows, classes + 2}, 1, 5.0f).slice_columns(1, 1 + classes);
    const auto targets = make_targets(rows, classes);
    const auto got = softmax_cross_entropy(ctx, logits, targets);
    expect_close(got.token_losses, reference::cross_entropy(values(logits), targets),
                 tolerance(DType::kF32, classes), "token losses");
    expect_close(got.loss, {mean_loss(values(logits), targets)}, tolerance(DType::kF32, classes),
                 "loss");
  }
}

TEST(CrossEntropy, GradientMatchesComplexStepInPlace) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, classes] : std::vector<cases::CrossEntropy>{{2, 5}, {4, 17}, {3, 65}}) {
    Tape tape;
    Tensor logits = randn({rows, classes}, 2, 3.0f);
    const auto xs = values(logits);
    const auto targets = make_targets(rows, classes);
    tape.watch(logits);
    Context taped = ctx.with_tape(&tape);
    const auto got = softmax_cross_entropy(taped, logits, targets);
    tape.backward(ctx, {got.loss}, {host_tensor<float>({0.5f}, {1})});
    const auto want = complex_step(
        xs, [&](const std::vector<Complex>& z) { return 0.5 * mean_loss(z, targets); });
    expect_close(tape.grad(logits), want, tolerance(DType::kF32, classes), "dlogits");
    EXPECT_EQ(tape.grad(logits).raw(), logits.raw());
  }
}

TEST(CrossEntropy, CorrectIsTheOnlyLargestLogit) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const int64_t classes : {1, 2, 17, 65}) {
    const Tensor logits = randn({60, classes}, 7);
    const auto targets = make_targets(60, classes);
    for (int64_t i = 0; i < 60; i += 4) {  // these are answered, unless they are not counted
      if (targets[static_cast<size_t>(i)] >= 0) {
        logits.f32()[i * classes + targets[static_cast<size_t>(i)]] = 9;
      }
    }
    for (int64_t i = 0; i < 60; i += 8) logits.f32()[i * classes + classes / 2] = 9;  // and tied
    const Tensor got = softmax_cross_entropy(ctx, logits, targets).correct;
    EXPECT_EQ(std::vector<int32_t>(got.data<int32_t>(), got.data<int32_t>() + 60),
              reference::correct_targets(values(logits), targets));
  }
}

TEST(CrossEntropy, RowsNotCountedHaveNoGradientWhateverTheyHold) {
  Context ctx;
  Tape tape;
  Tensor logits = host_tensor<float>({1, 2, 1e4f, -1e4f}, {2, 2});
  tape.watch(logits);
  Context taped = ctx.with_tape(&tape);
  const auto got = softmax_cross_entropy(taped, logits, std::vector<int32_t>{0, -1});
  tape.backward(ctx, {got.loss}, {host_tensor<float>({1}, {1})});
  const auto gradient = values(tape.grad(logits));
  EXPECT_LT(gradient[0], 0);
  EXPECT_EQ(gradient[2], 0);
  EXPECT_EQ(gradient[3], 0);
}

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  Context ctx;
  const Tensor logits = host_tensor<float>({1e4f, -1e4f, 1e4f, -1e4f}, {2, 2});
  const auto got = softmax_cross_entropy(ctx, logits, std::vector<int32_t>{0, 1});
  EXPECT_EQ(values(got.token_losses), (std::vector<double>{0, 2e4}));
}

TEST(CrossEntropy, NothingCountedIsZero) {
  Context ctx;
  const auto got = softmax_cross_entropy(ctx, randn({2, 3}, 1), std::vector<int32_t>{-1, -1});
  EXPECT_EQ(got.counted, 0);
  EXPECT_EQ(values(got.loss), std::vector<double>{0});
}

TEST(CrossEntropy, RefusesTargetsBeyondTheClasses) {
  Context ctx;
  EXPECT_THROW(softmax_cross_entropy(ctx, randn({1, 3}, 1), std::vector<int32_t>{3}), Error);
  EXPECT_THROW(softmax_cross_entropy(ctx, randn({2, 3}, 1), std::vector<int32_t>{1}), Error);
}

}  // namespace
}  // namespace braid
