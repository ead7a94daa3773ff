// swiglu against its reference and its gradient against complex step, on every device.

#include "braid/ops/swiglu/cases.h"
#include "braid/ops/swiglu/reference.h"
#include "braid/ops/swiglu/swiglu.h"
#include "tests/support/device.h"

namespace braid {
namespace {

using namespace test;

class Swiglu : public DeviceTest {};

TEST_P(Swiglu, MatchesReferenceOnStridedRows) {
  for (const auto& [rows, width] : cases::kSwigluTest) {
    const Tensor host = randn({rows, 2 * width + 3}, 1, 4.0f);
    const Tensor x = to_device(host).slice_columns(1, 1 + 2 * width);
    const auto want =
        reference::swiglu(values(host.slice_columns(1, 1 + 2 * width)), static_cast<size_t>(width));
    expect_near(swiglu(ctx(), x), want, tolerance(DType::kF32, 1), "y");
  }
}

TEST_P(Swiglu, GradientMatchesComplexStep) {
  for (const auto& [rows, width] : std::vector<cases::Swiglu>{{1, 1}, {3, 7}, {2, 33}}) {
    const Tensor host = randn({rows, 2 * width}, 2, 2.0f);
    const Tensor dy = randn({rows, width}, 3);
    Tape tape;
    Tensor x = to_device(host);
    tape.watch(x);
    Context taped = ctx().with_tape(&tape);
    const Tensor y = swiglu(taped, x);
    tape.backward(ctx(), {y}, {to_device(dy)});
    const auto dx = complex_step(values(host), [&, w = width](const std::vector<Complex>& z) {
      return dot(reference::swiglu(z, static_cast<size_t>(w)), values(dy));
    });
    expect_near(tape.grad(x), dx, tolerance(DType::kF32, 1), "dx");
  }
}

TEST_P(Swiglu, SaturatesWithoutNan) {
  const Tensor x = to_device(host_tensor<float>({-200, 200, -1e30f, 1, 1, 1}, {1, 6}));
  EXPECT_EQ(read(swiglu(ctx(), x)), (std::vector<double>{0, 200, 0}));
}

TEST_P(Swiglu, RefusesAnOddWidth) {
  EXPECT_THROW(swiglu(ctx(), to_device(randn({2, 5}, 1))), Error);
}

INSTANTIATE_TEST_SUITE_P(Devices, Swiglu, kDevices, device_name);

}  // namespace
}  // namespace braid
