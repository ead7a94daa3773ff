// Goal: experts that are one function are seen to be so and become one, and routers send the same
// tokens there. Method: assignments against all permutations; an expert against a copy with its
// units in another order; rows against the logits they are to give.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "braid/train/experts/alignment.h"
#include "braid/train/experts/assignment.h"
#include "braid/train/experts/router_rows.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::randn;
using test::values;

double cost_of(const std::vector<float>& cost, const std::vector<int64_t>& columns) {
  double sum = 0;
  const size_t n = columns.size();
  for (size_t r = 0; r < n; ++r) sum += cost[r * n + static_cast<size_t>(columns[r])];
  return sum;
}

TEST(Assign, IsTheBestOfAllPermutations) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Rng rng(seed);
    const auto n = static_cast<int64_t>(seed % 8);
    std::vector<float> cost(static_cast<size_t>(n * n));
    for (size_t i = 0; i < cost.size(); ++i) {
      // Every other matrix is of few small integers, so that there are ties.
      cost[i] = seed % 2 == 0 ? rng.normal(i) : static_cast<float>(rng.below(i, 4)) - 2;
    }
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    double best = INFINITY;
    do {
      best = std::min(best, cost_of(cost, order));
    } while (std::next_permutation(order.begin(), order.end()));
    std::vector<int64_t> found = assign(cost, n);
    EXPECT_NEAR(cost_of(cost, found), best, 1e-5) << "seed " << seed;
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, order);  // which is sorted again after the last permutation
  }
}

std::vector<int64_t> random_order(int64_t n, uint64_t seed) {
  const Rng rng(seed);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i, i)]);
  return order;
}

TEST(Assign, FindsAPermutationInNoise) {
  constexpr int64_t n = 150;
  const std::vector<int64_t> order = random_order(n, 5);
  std::vector<float> cost(n * n);
  const Rng rng(6);
  for (size_t i = 0; i < cost.size(); ++i) cost[i] = rng.uniform(i);
  for (int64_t r = 0; r < n; ++r) {
    cost[static_cast<size_t>(r * n + order[static_cast<size_t>(r)])] -= 1;
  }
  EXPECT_EQ(assign(cost, n), order);
}

TEST(Assign, RefusesWhatIsNoSquareOfNumbers) {
  EXPECT_THROW(assign(std::vector<float>(5), 2), Error);
  EXPECT_THROW(assign(std::vector<float>{0, NAN, 0, 0}, 2), Error);
}

struct Kind {
  ExpertActivation activation;
  bool gated;
};
constexpr Kind kKinds[] = {{ExpertActivation::kSwiglu, true},
                           {ExpertActivation::kRelu2, false},
                           {ExpertActivation::kRelu, false},
                           {ExpertActivation::kGelu, false},
                           {ExpertActivation::kSilu, false}};
constexpr int64_t kWidth = 24, kHidden = 20, kRows = 50;

ExpertMatrices random_expert(bool gated, uint64_t seed) {
  return {randn({gated ? 2 * kHidden : kHidden, kWidth}, seed, 0.2f),
          randn({kWidth, kHidden}, seed + 1, 0.2f)};
}

// The same function with its units in another order and, if gated, every third with both signs
// changed: unit u of the copy is unit order[u] of the expert.
ExpertMatrices shuffled(const ExpertMatrices& e, const std::vector<int64_t>& order) {
  const int64_t F = e.hidden(), D = e.width();
  std::vector<float> in(static_cast<size_t>(e.in.count())), out(in.size() / (e.gated() ? 2 : 1));
  for (int64_t u = 0; u < F; ++u) {
    const int64_t from = order[static_cast<size_t>(u)];
    const float sign = e.gated() && u % 3 == 0 ? -1.0f : 1.0f;
    for (int64_t d = 0; d < D; ++d) {
      if (e.gated()) in[static_cast<size_t>(u * D + d)] = e.in.f32()[from * D + d];
      const int64_t up = e.gated() ? F : 0;
      in[static_cast<size_t>((up + u) * D + d)] = sign * e.in.f32()[(up + from) * D + d];
      out[static_cast<size_t>(d * F + u)] = sign * e.out.f32()[d * F + from];
    }
  }
  return {host_tensor(std::move(in), e.in.shape()), host_tensor(std::move(out), e.out.shape())};
}

ExpertMatrices moved(const ExpertMatrices& e, float by, uint64_t seed) {
  ExpertMatrices noise{randn(e.in.shape(), seed, by), randn(e.out.shape(), seed + 1, by)};
  for (int64_t i = 0; i < e.in.count(); ++i) noise.in.f32()[i] += e.in.f32()[i];
  for (int64_t i = 0; i < e.out.count(); ++i) noise.out.f32()[i] += e.out.f32()[i];
  return noise;
}

ExpertOutputs outputs_of(Context& ctx, const ExpertMatrices& e, ExpertActivation activation) {
  return evaluate_expert(ctx, randn({kRows, kWidth}, 99),
                         {Weight::make(ctx, e.in), Weight::make(ctx, e.out)}, activation);
}

TEST(Align, FindsTheOrderOfACopyThatHasMoved) {
  Context ctx({.threads = 2, .poison = true});
  const std::vector<int64_t> order = random_order(kHidden, 3);
  for (const Kind& kind : kKinds) {
    const ExpertMatrices e = random_expert(kind.gated, 10);
    const ExpertMatrices copy = moved(shuffled(e, order), 0.02f, 30);
    const ExpertOutputs ye = outputs_of(ctx, e, kind.activation);
    const ExpertOutputs yc = outputs_of(ctx, copy, kind.activation);
    const Alignment to = align_units(ctx, e, copy, ye.hidden, yc.hidden);
    for (size_t u = 0; u < order.size(); ++u) {
      const auto unit = static_cast<size_t>(to.unit[u]);
      EXPECT_EQ(order[unit], static_cast<int64_t>(u));
      EXPECT_EQ(to.sign[u], kind.gated && unit % 3 == 0 ? -1.0f : 1.0f);
    }
    // The mean is nearer to both than they are to each other; that of an unaligned pair is not.
    const double apart = relative_error(ye.y, yc.y);
    EXPECT_GT(apart, 0.02);
    EXPECT_LT(apart, 0.5);
    const ExpertOutputs mean = outputs_of(ctx, average(e, copy, to, 0.5), kind.activation);
    EXPECT_LT(relative_error(mean.y, ye.y), 0.7 * apart);
    EXPECT_LT(relative_error(mean.y, yc.y), 0.7 * apart);
    Alignment none{.unit = order, .sign = std::vector<float>(kHidden, 1.0f)};
    std::iota(none.unit.begin(), none.unit.end(), 0);
    EXPECT_GT(relative_error(outputs_of(ctx, average(e, copy, none, 0.5), kind.activation).y, ye.y),
              2 * apart);
  }
}

TEST(Align, TheMeanOfAnExpertAndItsShuffledCopyIsTheExpert) {
  Context ctx({.threads = 1, .poison = true});
  for (const Kind& kind : kKinds) {
    const ExpertMatrices e = random_expert(kind.gated, 40);
    const ExpertMatrices copy = shuffled(e, random_order(kHidden, 7));
    const ExpertOutputs ye = outputs_of(ctx, e, kind.activation);
    const ExpertOutputs yc = outputs_of(ctx, copy, kind.activation);
    EXPECT_LT(relative_error(ye.y, yc.y), test::tolerance(DType::kF32, kHidden));
    const Alignment to = align_units(ctx, e, copy, ye.hidden, yc.hidden);
    const ExpertMatrices mean = average(e, copy, to, 0.3);
    EXPECT_EQ(values(mean.in), values(e.in));
    EXPECT_EQ(values(mean.out), values(e.out));
    // Squares have no signs: those of the copy come back as those of the expert.
    ExpertMatrices squares = e, copies = copy;
    for (ExpertMatrices* m : {&squares, &copies}) {
      *m = {randn(m->in.shape(), 1), randn(m->out.shape(), 2)};
      const ExpertMatrices& from = m == &squares ? e : copy;
      for (int64_t i = 0; i < from.in.count(); ++i) m->in.f32()[i] = std::abs(from.in.f32()[i]);
      for (int64_t i = 0; i < from.out.count(); ++i) m->out.f32()[i] = std::abs(from.out.f32()[i]);
    }
    const ExpertMatrices both = average(squares, copies, to, 0.3, true);
    EXPECT_EQ(values(both.in), values(squares.in));
    EXPECT_EQ(values(both.out), values(squares.out));
  }
}

TEST(RelativeError, MeasuresFromEqualToOpposite) {
  const Tensor f = randn({40, 30}, 1), g = randn({40, 30}, 2), minus = randn({40, 30}, 1, -1);
  EXPECT_EQ(relative_error(f, f), 0);
  EXPECT_NEAR(relative_error(f, minus), 2, 1e-6);
  EXPECT_NEAR(relative_error(f, g), std::sqrt(2.0), 0.05);
  ThreadPool threads(2);
  const std::vector<double> all = relative_errors(threads, {f, g, minus});
  EXPECT_EQ(all[1], relative_error(f, g));
  EXPECT_EQ(all[2], relative_error(f, minus));
  EXPECT_EQ(all[5], relative_error(g, minus));
  EXPECT_EQ(all[3], 0);
}

// A row's products with every row of x.
std::vector<double> logits_of(const Tensor& x, std::span<const float> row) {
  std::vector<double> z;
  for (int64_t s = 0; s < x.dim(0); ++s) {
    double sum = 0;
    for (int64_t d = 0; d < x.dim(1); ++d) {
      sum += static_cast<double>(x.f32()[s * x.dim(1) + d]) * row[static_cast<size_t>(d)];
    }
    z.push_back(sum);
  }
  return z;
}

TEST(FitRow, SolvesTheNormalEquations) {
  constexpr int64_t S = 60, D = 9;
  const Tensor x = randn({S, D}, 3);
  const std::vector<double> row64 = values(randn({D}, 4)), target = values(randn({S}, 5));
  const auto row = test::as<float>(row64);
  std::vector<double> weight = values(randn({S}, 6));
  for (double& w : weight) w = std::abs(w);
  const std::vector<float> fitted = fit_row(x, row, target, weight);
  const std::vector<double> z = logits_of(x, fitted);
  double energy = 0;
  for (int64_t i = 0; i < x.count(); ++i) {
    energy += weight[static_cast<size_t>(i / D)] * x.f32()[i] * x.f32()[i];
  }
  for (int64_t d = 0; d < D; ++d) {
    const auto at = static_cast<size_t>(d);
    double slope = kRidge * energy / D * (fitted[at] - row[at]), size = 0;
    for (int64_t s = 0; s < S; ++s) {
      const auto n = static_cast<size_t>(s);
      slope += weight[n] * x.f32()[s * D + d] * (z[n] - target[n]);
      size += weight[n] * std::abs(x.f32()[s * D + d] * target[n]);
    }
    EXPECT_LT(std::abs(slope), test::tolerance(DType::kF32, S) * size);
  }
}

// Rows x whose first element is 1, so that rows of a router can hold a constant; the experts of
// `router` (E, D) with the k largest logits are chosen.
RouterSample make_sample(const std::vector<std::vector<float>>& router, int64_t top_k, int64_t S) {
  const auto E = static_cast<int64_t>(router.size()), D = static_cast<int64_t>(router[0].size());
  RouterSample sample{.x = randn({S, D}, 8), .logits = randn({S, E}, 9), .chosen = {}};
  for (int64_t s = 0; s < S; ++s) sample.x.f32()[s * D] = 1;
  sample.chosen.assign(static_cast<size_t>(S * E), 0);
  for (int64_t e = 0; e < E; ++e) {
    const auto z = logits_of(sample.x, router[static_cast<size_t>(e)]);
    for (int64_t s = 0; s < S; ++s) {
      sample.logits.f32()[s * E + e] = static_cast<float>(z[static_cast<size_t>(s)]);
    }
  }
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t slot = 0; slot < top_k; ++slot) {
      int64_t best = -1;
      for (int64_t e = 0; e < E; ++e) {
        if (sample.chose(s, e)) continue;
        if (best < 0 || sample.logit(s, e) > sample.logit(s, best)) best = e;
      }
      sample.chosen[static_cast<size_t>(s * E + best)] = 1;
    }
  }
  return sample;
}

std::vector<std::vector<float>> random_router(int64_t E, int64_t D, uint64_t seed) {
  std::vector<std::vector<float>> router;
  for (int64_t e = 0; e < E; ++e) {
    router.push_back(test::as<float>(values(randn({D}, seed + static_cast<uint64_t>(e), 0.5f))));
  }
  return router;
}

TEST(FoldRows, EqualRowsNeverChosenTogetherStay) {
  auto router = random_router(6, 12, 20);
  router[4] = router[1];
  const RouterSample sample = make_sample(router, 1, 400);  // ties go to the lower index
  ASSERT_GT(sample.load(1), 0);
  ASSERT_EQ(sample.load(4), 0);
  for (const RouteScore score : {RouteScore::kSoftmax, RouteScore::kSigmoid}) {
    const std::vector<float> row = fold_rows(sample, score, 1, 4, router[1]);
    test::expect_close(std::vector<double>(row.begin(), row.end()),
                       std::vector<double>(router[1].begin(), router[1].end()), 1e-6, "row");
  }
}

// Both copies are chosen together: the merged logit carries the mass of both, and the weights of
// the other experts stay, which is what one row can do exactly where x holds a constant.
TEST(FoldRows, EqualRowsChosenTogetherAddTheirMass) {
  auto router = random_router(6, 12, 20);
  router[1][0] += 8;  // chosen by all tokens
  router[4] = router[1];
  const RouterSample sample = make_sample(router, 3, 400);
  ASSERT_EQ(sample.load(1), 400);
  ASSERT_EQ(sample.load(4), 400);
  const auto before = logits_of(sample.x, router[1]);
  const auto after = logits_of(sample.x, fold_rows(sample, RouteScore::kSelected, 1, 4, router[1]));
  for (size_t s = 0; s < before.size(); ++s) {
    // The ridge takes its share of the step.
    EXPECT_NEAR(after[s] - before[s], std::log(2.0), 2 * kRidge);
  }
}

TEST(SplitRows, OneOfTwoHalvesTakesEachToken) {
  auto router = random_router(8, 16, 50);
  for (const int64_t top_k : {1, 2, 3}) {
    RouterSample sample = make_sample(router, top_k, 2000);
    const int64_t hot = 2;
    ASSERT_GT(sample.load(hot), 100);
    const SplitRows split = split_rows(sample, hot, router[hot], Rng(4));
    const auto first = logits_of(sample.x, split.first), second = logits_of(sample.x, split.second);
    int64_t to_first = 0;
    double error = 0, size = 0, lower = 0;
    for (int64_t s = 0; s < sample.rows(); ++s) {
      if (!sample.chose(s, hot)) continue;
      const double a = first[static_cast<size_t>(s)], b = second[static_cast<size_t>(s)];
      const double z = sample.logit(s, hot);
      to_first += a > b;
      error += std::pow(std::max(a, b) - z, 2);
      size += split.margin * split.margin;
      lower += z - std::min(a, b);
    }
    const auto load = static_cast<double>(sample.load(hot));
    EXPECT_NEAR(static_cast<double>(to_first), load / 2, load / 10);
    EXPECT_LT(error, 0.2 * size);
    EXPECT_GT(lower / load, 0.5 * split.margin);
  }
}

TEST(SplitRows, RefusesAnExpertThatIsNotUsed) {
  auto router = random_router(4, 6, 60);
  router[3] = std::vector<float>(6, 0.0f);
  router[3][0] = -100;
  const RouterSample sample = make_sample(router, 1, 100);
  EXPECT_THROW(split_rows(sample, 3, router[3], Rng(1)), Error);
}

}  // namespace
}  // namespace braid
