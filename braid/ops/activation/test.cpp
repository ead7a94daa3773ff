// Every activation against its reference, its gradient against complex step, and both far out.

#include "braid/ops/activation/activation.h"
#include "braid/ops/activation/cases.h"
#include "braid/ops/activation/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

class ActivationTest : public ::testing::TestWithParam<Activation> {
 protected:
  // y and dx at the points x, with dy = 1.
  std::pair<std::vector<double>, std::vector<double>> at(const std::vector<float>& points) {
    const auto n = static_cast<int64_t>(points.size());
    Tensor x = host_tensor(std::vector<float>(points), {1, n});
    Tape tape;
    tape.watch(x);
    Context taped = ctx_.with_tape(&tape);
    const Tensor y = activation(taped, x, GetParam());
    tape.backward(ctx_, {y}, {host_tensor(std::vector<float>(points.size(), 1.0f), {1, n})});
    return {values(y), values(tape.grad(x))};
  }
  Context ctx_{ContextOptions{.threads = 2, .poison = true}};
};

TEST_P(ActivationTest, MatchesReferenceOnStridedRows) {
  for (const auto& [rows, width] : cases::kActivationTest) {
    const Tensor x = randn({rows, width + 3}, 1, 3.0f).slice_columns(1, 1 + width);
    expect_close(activation(ctx_, x, GetParam()), reference::activation(values(x), GetParam()),
                 tolerance(DType::kF32, 1), "y");
  }
}

TEST_P(ActivationTest, GradientMatchesComplexStep) {
  Tape tape;
  Tensor x = randn({3, 67}, 2, 2.0f);
  const Tensor dy = randn({3, 67}, 3);
  tape.watch(x);
  Context taped = ctx_.with_tape(&tape);
  const Tensor y = activation(taped, x, GetParam());
  tape.backward(ctx_, {y}, {dy});
  const auto dx = complex_step(values(x), [&](const std::vector<Complex>& z) {
    return dot(reference::activation(z, GetParam()), values(dy));
  });
  expect_close(tape.grad(x), dx, tolerance(DType::kF32, 1), "dx");
}

// One point at a time, so that the error is relative to the point's own value.
TEST_P(ActivationTest, KeepsItsRelativeErrorFarOut) {
  for (const float x : {-80.0f, -20.0f, -5.0f, -1e-3f, 1e-3f, 5.0f, 20.0f, 80.0f}) {
    const auto [y, dx] = at({x});
    const auto slope = complex_step({x}, [&](const std::vector<Complex>& z) {
      return reference::activation(z[0], GetParam());
    });
    if (GetParam() == Activation::kTanh && std::abs(x) > 10) {
      // The reference's own slope cancels there: 4 e^-2|x| to first order.
      expect_close(dx, {4 * std::exp(-2.0 * std::abs(x))}, tolerance(DType::kF32, 1), "dx");
    } else {
      expect_close(dx, slope, tolerance(DType::kF32, 1), "dx");
    }
    const double want = x < -30 && GetParam() == Activation::kSoftplus
                            ? std::exp(static_cast<double>(x))  // log(1 + e) loses it in double
                            : reference::activation<double>(x, GetParam());
    expect_close(y, {want}, tolerance(DType::kF32, 1), "y");
  }
}

TEST_P(ActivationTest, PassesNanOn) {
  const auto [y, dx] = at({NAN, 0.5f});
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(dx[0]));
  EXPECT_TRUE(std::isfinite(y[1]) && std::isfinite(dx[1]));
}

constexpr Activation kAll[] = {Activation::kExp,         Activation::kSigmoid,   Activation::kTanh,
                               Activation::kSilu,        Activation::kSoftplus,  Activation::kRelu,
                               Activation::kReluSquared, Activation::kEluPlusOne};
constexpr const char* kNames[] = {"exp",      "sigmoid", "tanh",         "silu",
                                  "softplus", "relu",    "relu_squared", "elu_plus_one"};

INSTANTIATE_TEST_SUITE_P(Kinds, ActivationTest, ::testing::ValuesIn(kAll),
                         [](const auto& kind) { return kNames[static_cast<size_t>(kind.param)]; });

}  // namespace
}  // namespace braid
