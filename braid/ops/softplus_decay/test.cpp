// The decays against the reference on strided rows, and all gradients against complex step.

#include "braid/ops/softplus_decay/cases.h"
#include "braid/ops/softplus_decay/reference.h"
#include "braid/ops/softplus_decay/softplus_decay.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

TEST(SoftplusDecay, MatchesReferenceWithGradientsOnStridedRows) {
  Context ctx({.threads = 2, .poison = true});
  for (const auto& [tokens, heads] : cases::kSoftplusDecayTest) {
    Tensor leaves[] = {randn({tokens, heads + 3}, 1, 3.0f).slice_columns(1, 1 + heads),
                       randn({heads}, 2), randn({heads}, 3)};
    const Tensor dy = randn({tokens, heads}, 4);
    std::vector<double> at[3];
    for (size_t i = 0; i < 3; ++i) at[i] = values(leaves[i]);
    Tape tape;
    for (Tensor& leaf : leaves) tape.watch(leaf);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = softplus_decay(taped, leaves[0], leaves[1], leaves[2]);
    expect_close(y, reference::softplus_decay(at[0], at[1], at[2]), tolerance(DType::kF32, 1), "y");
    tape.backward(ctx, {y}, {dy});
    for (size_t which = 0; which < 3; ++which) {
      std::vector<Complex> in[] = {as<Complex>(at[0]), as<Complex>(at[1]), as<Complex>(at[2])};
      const auto want = complex_step(at[which], [&](const std::vector<Complex>& z) {
        in[which] = z;
        return dot(reference::softplus_decay(in[0], in[1], in[2]), values(dy));
      });
      expect_close(tape.grad(leaves[which]), want, tolerance(DType::kF32, tokens),
                   which == 0   ? "dx"
                   : which == 1 ? "d a_log"
                                : "d bias");
    }
  }
}

TEST(SoftplusDecay, RefusesWrongShapes) {
  Context ctx;
  EXPECT_THROW(softplus_decay(ctx, randn({2, 3}, 1), randn({2}, 1), randn({3}, 1)), Error);
}

}  // namespace
}  // namespace braid
