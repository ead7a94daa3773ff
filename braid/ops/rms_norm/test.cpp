// rms_norm against its reference and its gradients against complex step, on every device.

#include "braid/ops/rms_norm/cases.h"
#include "braid/ops/rms_norm/reference.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "tests/support/device.h"

namespace braid {
namespace {

using namespace test;

constexpr float kEps = 1e-5f;

class RmsNorm : public DeviceTest {};

TEST_P(RmsNorm, MatchesReferenceOnStridedRows) {
  for (const auto& [rows, width] : cases::kRmsNormTest) {
    const Tensor x = randn({rows, width + 5}, 1).slice_columns(2, 2 + width);
    const Tensor w = randn({width}, 2);
    const Tensor wide = to_device(randn({rows, width + 5}, 1));
    const Tensor y = rms_norm(ctx(), wide.slice_columns(2, 2 + width), to_device(w), kEps);
    expect_near(y, reference::rms_norm(values(x), values(w), kEps), tolerance(DType::kF32, width),
                "y");
    const Tensor plain = rms_norm(ctx(), to_device(x), Tensor{}, kEps);
    const std::vector<double> ones(static_cast<size_t>(width), 1.0);
    expect_near(plain, reference::rms_norm(values(x), ones, kEps), tolerance(DType::kF32, width),
                "y without w");
  }
}

TEST_P(RmsNorm, GradientsMatchComplexStep) {
  // Not width 1: there y is the sign of x and its gradient all cancellation.
  for (const auto& [rows, width] : std::vector<cases::RmsNorm>{{1, 3}, {3, 7}, {37, 5}, {2, 65}}) {
    const std::vector<double> xs = values(randn({rows, width}, 3));
    const std::vector<double> ws = values(randn({width}, 4));
    const std::vector<double> dys = values(randn({rows, width}, 5));
    Tape tape;
    Tensor x = to_device(randn({rows, width}, 3));
    Tensor w = to_device(randn({width}, 4));
    tape.watch(x);
    tape.watch(w);
    Context taped = ctx().with_tape(&tape);
    const Tensor y = rms_norm(taped, x, w, kEps);
    tape.backward(ctx(), {y}, {to_device(randn({rows, width}, 5))});

    const auto dx = complex_step(xs, [&](const std::vector<Complex>& z) {
      return dot(reference::rms_norm(z, as<Complex>(ws), kEps), dys);
    });
    const auto dw = complex_step(ws, [&](const std::vector<Complex>& z) {
      return dot(reference::rms_norm(as<Complex>(xs), z, kEps), dys);
    });
    expect_near(tape.grad(x), dx, tolerance(DType::kF32, width), "dx");
    expect_near(tape.grad(w), dw, tolerance(DType::kF32, rows), "dw");
  }
}

TEST_P(RmsNorm, ARowDependsOnNothingElse) {
  const Tensor x = to_device(randn({70, 131}, 6));
  const Tensor w = to_device(randn({131}, 7));
  const std::vector<double> whole = read(rms_norm(ctx(), x, w, kEps));
  const std::vector<double> alone = read(rms_norm(ctx(), x.slice_rows(69, 70), w, kEps));
  EXPECT_EQ(std::vector<double>(whole.end() - 131, whole.end()), alone);
}

// Heads side by side in a slice of wider rows, gradients included: as rows of their own.
TEST_P(RmsNorm, HeadsOfASliceAreRows) {
  constexpr int64_t kTokens = 19, kHeads = 3, kDim = 11, kWidth = kHeads * kDim;
  const auto run = [&](const Tensor& given, const Tensor& dy) {
    Tape tape;
    Tensor x = given, w = to_device(randn({kDim}, 9));
    tape.watch(x);
    tape.watch(w);
    Context taped = ctx().with_tape(&tape);
    const Tensor y = rms_norm(taped, x, w, kEps);
    EXPECT_EQ(y.shape(), x.shape());
    tape.backward(ctx(), {y}, {dy});
    return std::vector{read(y), read(tape.grad(x)), read(tape.grad(w))};
  };
  const Tensor x = to_device(randn({kTokens, kWidth}, 8), 5);
  const Tensor dy = to_device(randn({kTokens, kWidth}, 10), 3);
  const auto rows = [&](const Tensor& t) {
    return to_device(ctx().to_host(t).reshape({kTokens * kHeads, kDim}));
  };
  const Shape heads{kTokens, kHeads, kDim};
  EXPECT_EQ(run(x.reshape(heads), dy.reshape(heads)), run(rows(x), rows(dy)));
}

TEST_P(RmsNorm, RefusesOtherShapes) {
  const Tensor x = to_device(randn({2, 4}, 1));
  EXPECT_THROW(rms_norm(ctx(), x, to_device(randn({5}, 1)), kEps), Error);
  EXPECT_THROW(rms_norm(ctx(), to_device(randn({4}, 1)), Tensor{}, kEps), Error);
}

INSTANTIATE_TEST_SUITE_P(Devices, RmsNorm, kDevices, device_name);

}  // namespace
}  // namespace braid
