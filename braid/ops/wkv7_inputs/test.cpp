// wkv7_inputs against its reference, and its gradients against complex step.

#include <gtest/gtest.h>

#include "braid/core/tape.h"
#include "braid/ops/wkv7_inputs/cases.h"
#include "braid/ops/wkv7_inputs/reference.h"
#include "braid/ops/wkv7_inputs/wkv7_inputs.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

Wkv7Raw make_raw(const Wkv7InputsCase& c, uint64_t seed) {
  const Shape rows{c.rows, c.heads * c.head_dim}, vector{c.heads * c.head_dim};
  Wkv7Raw raw{.decay = test::randn(rows, seed, 3),
              .k = test::randn(rows, seed + 1),
              .rate = test::randn(rows, seed + 2),
              .k_k = test::randn(vector, seed + 3),
              .k_a = test::randn(vector, seed + 4),
              .v = {},
              .v_first = {},
              .v_mix = {}};
  if (c.mix_values) {
    raw.v = test::randn(rows, seed + 5);
    raw.v_first = test::randn(rows, seed + 6);
    raw.v_mix = test::randn(rows, seed + 7);
  }
  return raw;
}

template <class T>
std::vector<T> get(const Tensor& x) {
  return x.defined() ? test::as<T>(test::values(x)) : std::vector<T>{};
}

template <class T>
reference::Wkv7Raw<T> reference_of(const Wkv7Raw& raw) {
  return {get<T>(raw.decay), get<T>(raw.k), get<T>(raw.rate),    get<T>(raw.k_k),
          get<T>(raw.k_a),   get<T>(raw.v), get<T>(raw.v_first), get<T>(raw.v_mix)};
}

void check_against_reference() {
  Context ctx({.threads = 2, .poison = true});
  for (const Wkv7InputsCase& c : wkv7_inputs_test_cases()) {
    const Wkv7Raw raw = make_raw(c, 1);
    const Wkv7Prepared got = wkv7_inputs(ctx, raw, c.heads);
    const auto want = reference::wkv7_inputs(reference_of<double>(raw), c.head_dim);
    const double tol = test::tolerance(DType::kF32, c.head_dim);
    test::expect_close(got.log_decay, want.log_decay, tol, "log_decay");
    test::expect_close(got.k, want.k, tol, "k");
    test::expect_close(got.a, want.a, tol, "a");
    test::expect_close(got.b, want.b, tol, "b");
    EXPECT_EQ(got.v.defined(), c.mix_values);
    if (c.mix_values) test::expect_close(got.v, want.v, tol, "v");
  }
}

TEST(Wkv7Inputs, MatchesTheReference) { test::on_every_target(check_against_reference); }

TEST(Wkv7Inputs, AKeyOfZerosIsNotDividedByZero) {
  Context ctx;
  Wkv7Raw raw = make_raw({1, 2, 8, false}, 3);
  std::fill_n(raw.k.f32(), 8, 0.0f);
  const auto want = reference::wkv7_inputs(reference_of<double>(raw), 8);
  test::expect_close(wkv7_inputs(ctx, raw, 2).a, want.a, test::tolerance(DType::kF32, 8), "a");
}

TEST(Wkv7Inputs, BitsDoNotDependOnThreads) {
  Context one({.threads = 1}), three({.threads = 3});
  const Wkv7Raw raw = make_raw({100, 3, 24, true}, 5);
  const Wkv7Prepared want = wkv7_inputs(one, raw, 3), got = wkv7_inputs(three, raw, 3);
  EXPECT_TRUE(test::same_bits(got.b, want.b));
  EXPECT_TRUE(test::same_bits(got.v, want.v));
}

TEST(Wkv7Inputs, GradientsMatchComplexStep) {
  constexpr const char* kNames[] = {"decay", "k", "rate", "k_k", "k_a", "v", "v_first", "v_mix"};
  Context ctx({.threads = 3, .poison = true});
  for (const Wkv7InputsCase& c :
       {Wkv7InputsCase{1, 1, 8, false}, {35, 2, 3, true}, {2, 2, 24, true}}) {
    Wkv7Raw raw = make_raw(c, 11);
    Tape tape;
    std::vector<Tensor*> leaves{&raw.decay, &raw.k, &raw.rate, &raw.k_k, &raw.k_a};
    if (c.mix_values) leaves.insert(leaves.end(), {&raw.v, &raw.v_first, &raw.v_mix});
    for (Tensor* leaf : leaves) tape.watch(*leaf);
    Context taped = ctx.with_tape(&tape);
    const Wkv7Prepared out = wkv7_inputs(taped, raw, c.heads);
    std::vector<Tensor> outputs{out.log_decay, out.k, out.a, out.b}, dys;
    if (c.mix_values) outputs.push_back(out.v);
    for (const Tensor& y : outputs) dys.push_back(test::randn(y.shape(), 60 + dys.size()));
    tape.backward(ctx, outputs, dys);
    for (size_t which = 0; which < leaves.size(); ++which) {
      auto in = reference_of<Complex>(raw);
      std::vector<Complex>* const fields[] = {&in.decay, &in.k, &in.rate,    &in.k_k,
                                              &in.k_a,   &in.v, &in.v_first, &in.v_mix};
      const auto want =
          test::complex_step(test::values(*leaves[which]), [&](const std::vector<Complex>& z) {
            *fields[which] = z;
            const auto y = reference::wkv7_inputs(in, c.head_dim);
            const std::vector<Complex>* const ys[] = {&y.log_decay, &y.k, &y.a, &y.b, &y.v};
            Complex sum = 0;
            for (size_t i = 0; i < dys.size(); ++i) sum += test::dot(*ys[i], test::values(dys[i]));
            return sum;
          });
      test::expect_close(tape.grad(*leaves[which]), want,
                         test::tolerance(DType::kF32, c.rows + c.head_dim), kNames[which]);
    }
  }
}

TEST(Wkv7Inputs, RefusesWrongShapes) {
  Context ctx;
  const Wkv7Raw raw = make_raw({2, 2, 8, true}, 1);
  EXPECT_THROW(wkv7_inputs(ctx, raw, 3), Error);
  Wkv7Raw broken = raw;
  broken.v_mix = {};
  EXPECT_THROW(wkv7_inputs(ctx, broken, 2), Error);
  broken = raw;
  broken.k_a = raw.k;
  EXPECT_THROW(wkv7_inputs(ctx, broken, 2), Error);
}

}  // namespace
}  // namespace braid
