// Goal: with a horizon, a token learns from the last horizon / 2 to horizon tokens and from no
// others, whatever the cuts. Method: outputs and gradients against the plain op over each half of a
// horizon and the half before it, from the initial weights, over seven switches of the banks.

#include "braid/nn/mixers/ttt_banks.h"

#include <gtest/gtest.h>

#include "tests/support/bits.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::randn;

constexpr int64_t kHorizon = 64, kTokens = 230, kHeads = 2, kDim = 4, kMiniBatch = 16;

TttInputs random_inputs(int64_t hidden) {
  const int64_t width = kHeads * kDim, F = hidden > 0 ? hidden : kDim;
  TttInputs in{.q = randn({kTokens, width}, 1),
               .k = randn({kTokens, width}, 2),
               .v = randn({kTokens, width}, 3),
               .lr = randn({kTokens, kHeads}, 4, 0.1f),
               .rate = randn({kMiniBatch}, 5),
               .norm_weight = randn({kHeads, kDim}, 6),
               .norm_bias = randn({kHeads, kDim}, 7),
               .w1 = randn({kHeads, kDim, F}, 8),
               .b1 = randn({kHeads, F}, 9)};
  if (hidden > 0) {
    in.w2 = randn({kHeads, F, kDim}, 10);
    in.b2 = randn({kHeads, kDim}, 11);
  }
  return in;
}

TttInputs rows(const TttInputs& all, int64_t begin, int64_t end) {
  TttInputs in = all;
  for (Tensor* x : {&in.q, &in.k, &in.v, &in.lr}) *x = x->slice_rows(begin, end);
  return in;
}

// Where the older bank of token t began: halves of the horizon, counted from the start, one whole
// half ago.
int64_t began(int64_t t) { return std::max<int64_t>(0, t / (kHorizon / 2) - 1) * (kHorizon / 2); }

TEST(TttBanks, ATokenLearnsFromItsHorizonAlone) {
  for (const int64_t hidden : {0, 6}) {
    const TttOptions options{
        .heads = kHeads, .head_dim = kDim, .hidden = hidden, .mini_batch = kMiniBatch};
    Context ctx({.threads = 2, .poison = true});
    const TttInputs all = random_inputs(hidden);
    const auto whole = SequenceBatch::single(kTokens);
    const Tensor y = ttt_banks(ctx, all, nullptr, 0, whole, options, kHorizon);
    for (int64_t t = 0; t < kTokens; ++t) {
      const int64_t from = began(t), age = t - from;
      ASSERT_LT(age, kHorizon);
      ASSERT_TRUE(age >= kHorizon / 2 || from == 0);
      const TttResult want =
          ttt(ctx, rows(all, from, t + 1), {}, SequenceBatch::single(t + 1 - from), options);
      const Tensor got = y.slice_rows(t, t + 1), last = want.y.slice_rows(t - from, t - from + 1);
      if (test::bits_are_promised()) {
        EXPECT_TRUE(test::same_bits(got, last)) << "token " << t << ", hidden " << hidden;
      }
      test::expect_close(got, last, test::tolerance(DType::kF32, kHorizon), "output");
    }
  }
}

TEST(TttBanks, EveryCutHasTheSameBits) {
  const TttOptions options{
      .heads = kHeads, .head_dim = kDim, .hidden = 6, .mini_batch = kMiniBatch};
  Context ctx({.threads = 2, .poison = true});
  const TttInputs all = random_inputs(6);
  const Tensor want =
      ttt_banks(ctx, all, nullptr, 0, SequenceBatch::single(kTokens), options, kHorizon);
  const StateSpec spec{{.name = "fast", .shape = {2, kHeads, ttt_state_size(options)}}};
  for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{
           {1}, {31}, {32}, {33}, {64}, {65, 66}, {100, 101, 127, 128}, {40, 200}, {229}}) {
    State state(ctx.shared_api(), {spec});
    State* const states[] = {&state};
    std::vector<int64_t> ends = cuts;
    ends.push_back(kTokens);
    for (const int64_t end : ends) {
      const int64_t from = state.position();
      const auto batch = SequenceBatch::single(end - from, from);
      const LayerState layer(states, 0, batch);
      const Tensor got = ttt_banks(ctx, rows(all, from, end), &layer, 0, batch, options, kHorizon);
      state.advance(end - from);
      const Tensor piece = want.slice_rows(from, end);
      if (test::bits_are_promised()) {
        EXPECT_TRUE(test::same_bits(got, piece)) << from << ".." << end;
      }
      test::expect_close(got, piece, test::tolerance(DType::kF32, kHorizon), "piece");
    }
  }
}

// Each half of a horizon is read by one life of a bank, which began a half before it.
TEST(TttBanks, GradientsAreThoseOfTheLives) {
  const TttOptions options{
      .heads = kHeads, .head_dim = kDim, .hidden = 6, .mini_batch = kMiniBatch};
  Context ctx({.threads = 2, .poison = true});
  TttInputs all = random_inputs(6);
  const int64_t width = kHeads * kDim;
  const Tensor dy = randn({kTokens, width}, 12);
  Tape tape;
  Context taped = ctx.with_tape(&tape);
  for (Tensor* x : {&all.k, &all.v, &all.q, &all.w1, &all.b2}) tape.watch(*x);
  const Tensor y =
      ttt_banks(taped, all, nullptr, 0, SequenceBatch::single(kTokens), options, kHorizon);
  tape.backward(ctx, {y}, {dy});

  std::vector<double> dk(static_cast<size_t>(kTokens * width)), dv = dk, dq = dk;
  std::vector<double> dw1(static_cast<size_t>(all.w1.count()));
  std::vector<double> db2(static_cast<size_t>(all.b2.count()));
  const auto add = [](std::vector<double>& sum, const Tensor& part, int64_t at) {
    const std::vector<double> x = test::values(part);
    for (size_t i = 0; i < x.size(); ++i) sum[static_cast<size_t>(at) + i] += x[i];
  };
  constexpr int64_t kHalf = kHorizon / 2;
  for (int64_t begin = 0; begin < kTokens; begin += kHalf) {
    const int64_t from = began(begin), end = std::min(begin + kHalf, kTokens);
    Tape life;
    Context of_life = ctx.with_tape(&life);
    TttInputs in = rows(all, from, end);
    for (Tensor* x : {&in.k, &in.v, &in.q, &in.w1, &in.b2}) {
      x->set_grad_id(0);
      life.watch(*x);
    }
    const TttResult out = ttt(of_life, in, {}, SequenceBatch::single(end - from), options);
    Tensor d = ctx.zeros({end - from, width});
    std::copy_n(dy.f32() + begin * width, (end - begin) * width, d.f32() + (begin - from) * width);
    life.backward(ctx, {out.y}, {d});
    add(dk, life.grad(in.k), from * width);
    add(dv, life.grad(in.v), from * width);
    add(dq, life.grad(in.q), from * width);
    add(dw1, life.grad(in.w1), 0);
    add(db2, life.grad(in.b2), 0);
  }
  // Sums over seven lives, in another order.
  const double bound = test::tolerance(DType::kF32, kTokens);
  test::expect_close(tape.grad(all.k), dk, bound, "dk");
  test::expect_close(tape.grad(all.v), dv, bound, "dv");
  test::expect_close(tape.grad(all.q), dq, bound, "dq");
  test::expect_close(tape.grad(all.w1), dw1, bound, "dw1");
  test::expect_close(tape.grad(all.b2), db2, bound, "db2");
}

// The gradient of the last output reaches the tokens of its horizon and no others.
TEST(TttBanks, GradientsEndAtTheHorizon) {
  const TttOptions options{.heads = kHeads, .head_dim = kDim, .mini_batch = kMiniBatch};
  Context ctx({.threads = 1, .poison = true});
  Tape tape;
  Context taped = ctx.with_tape(&tape);
  TttInputs in = random_inputs(0);
  tape.watch(in.k);
  const Tensor y =
      ttt_banks(taped, in, nullptr, 0, SequenceBatch::single(kTokens), options, kHorizon);
  Tensor dy = ctx.zeros(y.shape());
  const int64_t t = kTokens - 1, width = kHeads * kDim;
  for (int64_t j = 0; j < width; ++j) dy.f32()[t * width + j] = 1;
  tape.backward(ctx, {y}, {dy});
  const Tensor dk = tape.grad(in.k);
  for (int64_t i = 0; i < kTokens; ++i) {
    double most = 0;
    for (int64_t j = 0; j < width; ++j) {
      most = std::max(most, std::abs(static_cast<double>(dk.f32()[i * width + j])));
    }
    EXPECT_EQ(most > 0, i >= began(t)) << "token " << i;
  }
}

}  // namespace
}  // namespace braid
