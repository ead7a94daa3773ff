// Goal: routing chooses, weighs, drops and differentiates as its reference does. Method: the
// choice, weights and load against the templated reference at odd sizes; the gradients of weights
// and auxiliary losses against complex step, in which the choice looks at real parts.

#include <gtest/gtest.h>

#include <numeric>

#include "braid/ops/route/cases.h"
#include "braid/ops/route/reference.h"
#include "braid/ops/route/route.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using cases::Route;
using test::as;
using test::Complex;
using test::randn;
using test::tolerance;
using test::values;

std::vector<int32_t> ids(const Tensor& x) {
  return {x.data<int32_t>(), x.data<int32_t>() + x.count()};
}

Tensor bias_of(const Route& c) { return c.bias ? randn({c.experts}, 7, 0.3f) : Tensor(); }
std::vector<double> values_or_none(const Tensor& x) {
  return x.defined() ? values(x) : std::vector<double>{};
}

// Three sequences, one of them empty.
SequenceBatch batch_of(int64_t tokens) {
  SequenceBatch batch;
  batch.add(tokens / 3);
  batch.add(0);
  batch.add(tokens - tokens / 3);
  return batch;
}

void check_against_reference() {
  Context ctx({.threads = 2, .poison = true});
  for (const Route& c : cases::kRouteTest) {
    for (const float capacity : {0.0f, 0.8f}) {
      SCOPED_TRACE(c.name);
      RouteOptions options = c.options;
      options.capacity = capacity;
      const Tensor wide = randn({c.tokens, c.experts + 3}, 1);
      const Tensor logits = wide.slice_columns(2, 2 + c.experts);
      const Tensor bias = bias_of(c);
      const Routing got = route(ctx, logits, bias, batch_of(c.tokens), options);
      const auto want = reference::route(values(logits), values_or_none(bias), c.experts, options);
      EXPECT_EQ(ids(got.experts), want.experts);
      test::expect_close(got.weights, want.weights, tolerance(DType::kF32, c.experts), "weights");
      std::vector<int32_t> load(static_cast<size_t>(c.experts));
      for (const int32_t e : want.chosen) ++load[static_cast<size_t>(e)];
      EXPECT_EQ(ids(got.load), load);
    }
  }
}

TEST(Route, MatchesTheReference) { test::on_every_target(check_against_reference); }

TEST(Route, GradientsMatchComplexStep) {
  Context ctx({.threads = 3, .poison = true});
  for (Route c : cases::kRouteTest) {
    c.tokens = std::min<int64_t>(c.tokens, 9);
    for (const int losses : {0, 1, 6}) {
      SCOPED_TRACE(fmt::format("{}, losses {}", c.name, losses));
      RouteOptions options = c.options;
      options.capacity = 0.8f;
      options.balance_loss = (losses & 1) != 0 ? 0.7f : 0.0f;
      options.sequence_loss = (losses & 2) != 0 ? 1.3f : 0.0f;
      options.z_loss = (losses & 4) != 0 ? 0.4f : 0.0f;
      const SequenceBatch batch = batch_of(c.tokens);
      Tensor logits = randn({c.tokens, c.experts}, 2);
      const Tensor bias = bias_of(c), dy = randn({c.tokens, c.options.top_k}, 3);
      Tape tape;
      tape.watch(logits);
      Context taped = ctx.with_tape(&tape);
      const Routing routing = route(taped, logits, bias, batch, options);
      tape.backward(ctx, {routing.weights}, {dy});
      const auto chosen =
          reference::route(values(logits), values_or_none(bias), c.experts, options);
      const auto want = test::complex_step(values(logits), [&](const std::vector<Complex>& z) {
        const auto again = reference::route(z, values_or_none(bias), c.experts, options);
        return test::dot(again.weights, values(dy)) +
               reference::route_losses(z, chosen.chosen, batch.offsets, c.experts, options);
      });
      test::expect_close(tape.grad(logits), want, tolerance(DType::kF32, c.experts), "dlogits");
    }
  }
}

TEST(Route, DropsInTheOrderOfSlotsAndTokens) {
  Context ctx;
  // Expert 0 takes four: of eight tokens that put it first, the fourth and later ones lose it ...
  std::vector<float> logits;
  for (int n = 0; n < 8; ++n) logits.insert(logits.end(), {2, 1, 0, 0});
  // ... and a token that puts it second comes after all of them.
  std::copy_n(std::vector<float>{1, 2, 0, 0}.begin(), 4, logits.begin());
  const Routing r = route(ctx, host_tensor(logits, {8, 4}), {}, SequenceBatch::single(8),
                          {.top_k = 2, .capacity = 0.25f});
  EXPECT_EQ(ids(r.experts),
            (std::vector<int32_t>{1, -1, 0, 1, 0, 1, 0, 1, 0, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(ids(r.load), (std::vector<int32_t>{8, 8, 0, 0}));
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(r.weights.f32()[i] == 0, ids(r.experts)[static_cast<size_t>(i)] < 0) << i;
  }
}

TEST(RouteUncertain, MatchesTheReference) {
  Context ctx({.threads = 2, .poison = true});
  for (const Route& c : cases::kRouteTest) {
    SCOPED_TRACE(c.name);
    const Tensor wide = randn({c.tokens, c.experts + 3}, 1);
    const Tensor logits = wide.slice_columns(2, 2 + c.experts), bias = bias_of(c);
    const RouteOptions& o = c.options;
    if (o.kept_groups * (c.experts / o.groups) == o.top_k) {
      test::expect_refused([&] { route_uncertain(ctx, logits, bias, 0.1f, o); }, "want more than");
      continue;
    }
    double between = 0;
    for (const float margin : {0.0f, 0.01f, 0.1f, 0.4f, 1e6f}) {
      const auto got = values(route_uncertain(ctx, logits, bias, margin, o));
      EXPECT_EQ(got, reference::route_uncertain(values(logits), values_or_none(bias), c.experts,
                                                static_cast<double>(margin), o));
      const auto close = static_cast<double>(std::ranges::count(got, 1.0));
      EXPECT_TRUE(margin > 0 || close == 0);
      EXPECT_TRUE(margin < 1e6f || close == static_cast<double>(c.tokens));
      between += close > 0 && close < static_cast<double>(c.tokens);
    }
    EXPECT_TRUE(between > 0 || c.tokens < 9);
  }
}

TEST(RouteUncertain, ARowIsReadAlone) {
  Context ctx;
  const float big = 3e38f;
  const Tensor logits = host_tensor<float>({1, 1, 0, 4, 1, -1, NAN, 0, 0, big, -big, 0}, {4, 3});
  const Tensor u = route_uncertain(ctx, logits, {}, 0.1f, {.score = RouteScore::kSigmoid});
  EXPECT_EQ(values(u), (std::vector<double>{1, 0, 0, 0}));
  // The bias takes the lead of the first token's first expert.
  const Tensor bias = host_tensor<float>({0.3f, 0, 0}, {3});
  const Tensor led = route_uncertain(ctx, logits, bias, 0.1f, {.score = RouteScore::kSigmoid});
  EXPECT_EQ(values(led), (std::vector<double>{0, 0, 0, 0}));
  EXPECT_EQ(route_uncertain(ctx, ctx.empty({0, 3}), {}, 0.1f, {}).shape(), (Shape{0}));
  test::expect_refused([&] { route_uncertain(ctx, logits, {}, NAN, {}); }, "the margin is nan");
}

TEST(Route, TiesGoToTheLowestIndex) {
  Context ctx;
  const Tensor flat = ctx.zeros({2, 9});
  const SequenceBatch batch = SequenceBatch::single(2);
  for (const RouteScore score :
       {RouteScore::kSoftmax, RouteScore::kSigmoid, RouteScore::kSelected}) {
    EXPECT_EQ(ids(route(ctx, flat, {}, batch, {.top_k = 3, .score = score}).experts),
              (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  }
  EXPECT_EQ(ids(route(ctx, flat, {}, batch, {.top_k = 4, .groups = 3, .kept_groups = 2}).experts),
            (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3}));
}

TEST(Route, AGroupThatIsNotKeptIsOutOfTheChoice) {
  Context ctx;
  // All choices are negative, those of the kept group the most: a mask of zero would take others.
  const Tensor logits = host_tensor<float>({0, 0, 0, 0}, {1, 4});
  const Tensor bias = host_tensor<float>({-3, -9, -4, -9}, {4});
  const Routing r = route(ctx, logits, bias, SequenceBatch::single(1),
                          {.top_k = 2,
                           .score = RouteScore::kSigmoid,
                           .groups = 2,
                           .kept_groups = 1,
                           .group_score = GroupScore::kTop2});
  EXPECT_EQ(ids(r.experts), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(values(r.weights), (std::vector<double>{0.5, 0.5})) << "the bias is not in the weights";
}

TEST(Route, ATokenIsRoutedAsItIsAlone) {
  Context one({.threads = 1}), three({.threads = 3});
  for (const Route& c : cases::kRouteTest) {
    const Tensor logits = randn({200, c.experts}, 5), bias = bias_of(c);
    const Routing all = route(three, logits, bias, SequenceBatch::single(200), c.options);
    for (const int64_t n : {0, 77, 199}) {
      const Routing alone =
          route(one, logits.slice_rows(n, n + 1), bias, SequenceBatch::single(1, n), c.options);
      EXPECT_EQ(ids(alone.experts), ids(all.experts.slice_rows(n, n + 1))) << c.name;
      EXPECT_TRUE(test::same_bits(alone.weights, all.weights.slice_rows(n, n + 1))) << c.name;
    }
  }
}

TEST(Route, AtPerfectBalanceTheLossesAreTheirCoefficients) {
  // Token n chooses n and n + 1 of four, with the same logits turned.
  std::vector<double> logits;
  for (int n = 0; n < 8; ++n) {
    for (int e = 0; e < 4; ++e) logits.push_back(((e - n) % 4 + 4) % 4 < 2 ? 1.5 : -0.5);
  }
  const RouteOptions balance{.top_k = 2, .balance_loss = 0.01f};
  const auto r = reference::route(logits, {}, 4, balance);
  EXPECT_NEAR(reference::route_losses(logits, r.chosen, {0, 8}, 4, balance), 0.01, 1e-9);
  const RouteOptions sequence{.top_k = 2, .score = RouteScore::kSigmoid, .sequence_loss = 0.01f};
  EXPECT_NEAR(reference::route_losses(logits, r.chosen, {0, 4, 8}, 4, sequence), 0.01, 1e-9);
}

TEST(Route, NoTokensAreRoutedNowhere) {
  Context ctx({.poison = true});
  Tape tape;
  Tensor logits = ctx.empty({0, 6});
  tape.watch(logits);
  Context taped = ctx.with_tape(&tape);
  SequenceBatch batch;
  batch.add(0);
  const Routing r = route(taped, logits, {}, batch, {.top_k = 2, .capacity = 1, .balance_loss = 1});
  EXPECT_EQ(r.experts.shape(), (Shape{0, 2}));
  EXPECT_EQ(ids(r.load), std::vector<int32_t>(6, 0));
  tape.backward(ctx, {r.weights}, {ctx.empty({0, 2})});
  EXPECT_EQ(tape.grad(logits).shape(), (Shape{0, 6}));
}

TEST(Route, ScoresFarApartStayFinite) {
  Context ctx;
  Tensor logits = host_tensor<float>({3e38f, -3e38f, 0, 0, -1000, -1000, -1000, -2000}, {2, 4});
  for (const RouteScore score :
       {RouteScore::kSoftmax, RouteScore::kSigmoid, RouteScore::kSelected}) {
    Tape tape;
    tape.watch(logits);
    Context taped = ctx.with_tape(&tape);
    const Routing r = route(taped, logits, {}, SequenceBatch::single(2),
                            {.top_k = 2, .score = score, .normalise = true, .balance_loss = 1});
    tape.backward(ctx, {r.weights}, {randn({2, 2}, 1)});
    for (const double v : values(r.weights)) EXPECT_TRUE(std::isfinite(v));
    for (const double v : values(tape.grad(logits))) EXPECT_TRUE(std::isfinite(v));
  }
}

TEST(Route, RefusesWhatItCannotRoute) {
  Context ctx;
  const Tensor logits = randn({3, 6}, 1);
  const SequenceBatch batch = SequenceBatch::single(3);
  const auto refuses = [&](const RouteOptions& options, const char* why) {
    test::expect_refused([&] { route(ctx, logits, {}, batch, options); }, why);
  };
  refuses({.top_k = 7}, "7 experts a token of 6");
  refuses({.top_k = 0}, "0 experts a token");
  refuses({.top_k = 1, .groups = 4}, "divides");
  refuses({.top_k = 1, .groups = 3, .kept_groups = 4}, "4 groups kept of 3");
  refuses({.top_k = 5, .groups = 3, .kept_groups = 2}, "at least the 5");
  refuses({.top_k = 1, .capacity = -1}, "negative capacity");
  test::expect_refused([&] { route(ctx, logits, randn({5}, 1), batch, {}); }, "selection_bias");
  test::expect_refused([&] { route(ctx, logits, {}, SequenceBatch::single(2), {}); }, "2 tokens");
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Tensor broken = randn({3, 6}, 1), bias = randn({6}, 1);
    broken.f32()[2 * 6 + 4] = bad;
    bias.f32()[5] = bad;
    test::expect_refused([&] { route(ctx, broken, {}, batch, {}); }, "of token 2 for expert 4 is");
    test::expect_refused([&] { route(ctx, logits, bias, batch, {}); }, "of expert 5 is");
  }
}

}  // namespace
}  // namespace braid
