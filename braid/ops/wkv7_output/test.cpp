// wkv7_output against its reference, and its gradients against complex step.

#include <gtest/gtest.h>

#include "braid/core/tape.h"
#include "braid/ops/wkv7_output/cases.h"
#include "braid/ops/wkv7_output/reference.h"
#include "braid/ops/wkv7_output/wkv7_output.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

constexpr float kEps = 64e-5f;

Wkv7OutputInputs make_inputs(const Wkv7OutputCase& c, uint64_t seed) {
  const Shape rows{c.rows, c.heads * c.head_dim}, vector{c.heads * c.head_dim};
  return {.y = test::randn(rows, seed),
          .r = test::randn(rows, seed + 1),
          .k = test::randn(rows, seed + 2),
          .v = test::randn(rows, seed + 3),
          .gate = test::randn(rows, seed + 4),
          .r_k = test::randn({c.heads, c.head_dim}, seed + 5),
          .weight = test::randn(vector, seed + 6),
          .bias = test::randn(vector, seed + 7)};
}

template <class T>
reference::Wkv7Reading<T> reference_of(const Wkv7OutputInputs& in) {
  const auto get = [](const Tensor& x) { return test::as<T>(test::values(x)); };
  return {get(in.y),    get(in.r),   get(in.k),      get(in.v),
          get(in.gate), get(in.r_k), get(in.weight), get(in.bias)};
}

void check_against_reference() {
  Context ctx({.threads = 2, .poison = true});
  for (const Wkv7OutputCase& c : wkv7_output_test_cases()) {
    const Wkv7OutputInputs in = make_inputs(c, 1);
    test::expect_close(wkv7_output(ctx, in, c.heads, kEps),
                       reference::wkv7_output(reference_of<double>(in), c.head_dim, kEps),
                       test::tolerance(DType::kF32, c.head_dim), "out");
  }
}

TEST(Wkv7Output, MatchesTheReference) { test::on_every_target(check_against_reference); }

TEST(Wkv7Output, BitsDoNotDependOnThreads) {
  Context one({.threads = 1}), three({.threads = 3});
  const Wkv7OutputInputs in = make_inputs({100, 3, 24}, 5);
  EXPECT_TRUE(test::same_bits(wkv7_output(three, in, 3, kEps), wkv7_output(one, in, 3, kEps)));
}

TEST(Wkv7Output, GradientsMatchComplexStep) {
  constexpr const char* kNames[] = {"y", "r", "k", "v", "gate", "r_k", "weight", "bias"};
  Context ctx({.threads = 3, .poison = true});
  for (const Wkv7OutputCase& c : {Wkv7OutputCase{1, 1, 8}, {35, 2, 3}, {2, 2, 24}}) {
    Wkv7OutputInputs in = make_inputs(c, 11);
    Tape tape;
    Tensor* const leaves[] = {&in.y, &in.r, &in.k, &in.v, &in.gate, &in.r_k, &in.weight, &in.bias};
    for (Tensor* leaf : leaves) tape.watch(*leaf);
    Context taped = ctx.with_tape(&tape);
    const Tensor out = wkv7_output(taped, in, c.heads, kEps);
    const Tensor d_out = test::randn(out.shape(), 60);
    tape.backward(ctx, {out}, {d_out});
    for (size_t which = 0; which < std::size(kNames); ++which) {
      auto z_in = reference_of<Complex>(in);
      std::vector<Complex>* const fields[] = {&z_in.y,    &z_in.r,   &z_in.k,      &z_in.v,
                                              &z_in.gate, &z_in.r_k, &z_in.weight, &z_in.bias};
      const auto want =
          test::complex_step(test::values(*leaves[which]), [&](const std::vector<Complex>& z) {
            *fields[which] = z;
            return test::dot(reference::wkv7_output(z_in, c.head_dim, kEps), test::values(d_out));
          });
      test::expect_close(tape.grad(*leaves[which]), want,
                         test::tolerance(DType::kF32, c.rows + c.head_dim), kNames[which]);
    }
  }
}

TEST(Wkv7Output, RefusesWrongShapes) {
  Context ctx;
  Wkv7OutputInputs in = make_inputs({2, 2, 8}, 1);
  EXPECT_THROW(wkv7_output(ctx, in, 3, kEps), Error);
  in.r_k = in.weight;
  EXPECT_THROW(wkv7_output(ctx, in, 2, kEps), Error);
}

}  // namespace
}  // namespace braid
