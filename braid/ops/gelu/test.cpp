// Both forms of gelu against the reference, and their gradients against complex step.

#include "braid/ops/gelu/cases.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/gelu/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

class Gelu : public ::testing::TestWithParam<GeluForm> {
 protected:
  bool use_tanh() const { return GetParam() == GeluForm::kTanh; }
  Context ctx_{ContextOptions{.threads = 2, .poison = true}};
};

TEST_P(Gelu, MatchesReferenceOnStridedRows) {
  for (const auto& [rows, width] : cases::kGeluTest) {
    const Tensor x = randn({rows, width + 3}, 1, 3.0f).slice_columns(1, 1 + width);
    expect_close(gelu(ctx_, x, GetParam()), reference::gelu(values(x), use_tanh()),
                 tolerance(DType::kF32, 1), "y");
  }
}

TEST_P(Gelu, GradientMatchesComplexStep) {
  Tape tape;
  Tensor x = randn({3, 67}, 2, 2.0f);
  const Tensor dy = randn({3, 67}, 3);
  tape.watch(x);
  Context taped = ctx_.with_tape(&tape);
  const Tensor y = gelu(taped, x, GetParam());
  tape.backward(ctx_, {y}, {dy});
  const auto dx = complex_step(values(x), [&](const std::vector<Complex>& z) {
    return dot(reference::gelu(z, use_tanh()), values(dy));
  });
  expect_close(tape.grad(x), dx, tolerance(DType::kF32, 1), "dx");
}

TEST_P(Gelu, FarOutItIsZeroOrX) {
  const Tensor y = gelu(ctx_, host_tensor<float>({-50, 50, 0}, {3}), GetParam());
  EXPECT_EQ(values(y), (std::vector<double>{0, 50, 0}));
}

INSTANTIATE_TEST_SUITE_P(Forms, Gelu, ::testing::Values(GeluForm::kErf, GeluForm::kTanh),
                         [](const auto& form) {
                           return form.param == GeluForm::kErf ? "erf" : "tanh";
                         });

}  // namespace
}  // namespace braid
