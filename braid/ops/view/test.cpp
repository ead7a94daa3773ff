// concat_columns against its definition on strided parts, and its gradients, which are slices.

#include "braid/ops/view/view.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

TEST(ConcatColumns, PutsStridedPartsSideBySide) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  Tape tape;
  Tensor a = randn({33, 7}, 1).slice_columns(2, 7), b = randn({33, 64}, 2);
  tape.watch(a);
  tape.watch(b);
  Context taped = ctx.with_tape(&tape);
  const Tensor parts[] = {a, b, a};
  const Tensor y = concat_columns(taped, parts);
  ASSERT_EQ(y.shape(), (Shape{33, 74}));
  EXPECT_TRUE(same_bits(y.slice_columns(0, 5), a));
  EXPECT_TRUE(same_bits(y.slice_columns(5, 69), b));
  EXPECT_TRUE(same_bits(y.slice_columns(69, 74), a));

  const Tensor dy = randn(y.shape(), 3);
  tape.backward(ctx, {y}, {dy});
  EXPECT_TRUE(same_bits(tape.grad(b), dy.slice_columns(5, 69)));
  const auto first = values(dy.slice_columns(0, 5)), third = values(dy.slice_columns(69, 74));
  const auto da = values(tape.grad(a));
  for (size_t i = 0; i < da.size(); ++i) {
    EXPECT_EQ(da[i], static_cast<float>(first[i]) + static_cast<float>(third[i]));
  }
}

TEST(ConcatColumns, RefusesOtherRows) {
  Context ctx;
  const Tensor parts[] = {randn({2, 3}, 1), randn({3, 3}, 1)};
  EXPECT_THROW(concat_columns(ctx, parts), Error);
  EXPECT_THROW(concat_columns(ctx, {}), Error);
}

}  // namespace
}  // namespace braid
