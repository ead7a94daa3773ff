// Goal: tokens are drawn from exactly the distribution that the options describe. Method: ties and
// filters by construction, frequencies of fixed seeds by chi-square, hostile logits.

#include "braid/infer/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "braid/core/error.h"
#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::map<int32_t, int> draw(const SamplerOptions& options, const std::vector<float>& logits,
                            int n) {
  Sampler sampler(options);
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(logits)];
  return counts;
}

// Pearson's statistic of `n` draws against weights; tokens of weight 0 must not be drawn.
double chi_square(const std::map<int32_t, int>& counts, const std::vector<double>& weights, int n) {
  double total = 0, statistic = 0;
  for (const double w : weights) total += w;
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto found = counts.find(static_cast<int32_t>(i));
    const double got = found == counts.end() ? 0 : found->second;
    if (weights[i] == 0) {
      EXPECT_EQ(got, 0) << "token " << i;
      continue;
    }
    const double want = n * weights[i] / total;
    statistic += (got - want) * (got - want) / want;
  }
  return statistic;
}

// Wilson-Hilferty: the value that a chi-square of `k` degrees exceeds once in 10,000 times.
double chi_square_bound(double k) {
  const double t = 1 - 2 / (9 * k) + 3.719 * std::sqrt(2 / (9 * k));
  return k * t * t * t;
}

const std::vector<float> kLogits = {0.3f, -1.2f, 2.0f, 1.1f, -0.4f, 0.9f, -3.0f, 1.9f};

std::vector<double> softmax_weights(double temperature) {
  std::vector<double> weights;
  for (const float l : kLogits) weights.push_back(std::exp(l / temperature));
  return weights;
}

TEST(Sampler, GreedyTakesTheLowestOfEqualTokens) {
  Sampler sampler({.temperature = 0});
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 3, 2, 3}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-0.0f, 0.0f}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -5, -kInf}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{7}), 0);
}

TEST(Sampler, FrequenciesAreTheSoftmax) {
  constexpr int kDraws = 40000;
  for (const double temperature : {0.5, 1.0, 2.5}) {
    const auto counts = draw({.temperature = temperature, .seed = 17}, kLogits, kDraws);
    EXPECT_LT(chi_square(counts, softmax_weights(temperature), kDraws), chi_square_bound(7))
        << temperature;
    // The check can fail: another temperature is told apart.
    EXPECT_GT(chi_square(counts, softmax_weights(temperature * 1.1), kDraws), chi_square_bound(7));
  }
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  constexpr int kDraws = 20000;
  std::vector<double> weights = softmax_weights(1);
  for (const int i : {0, 1, 4, 5, 6}) weights[static_cast<size_t>(i)] = 0;  // 2, 7 and 3 remain
  const auto counts = draw({.temperature = 1, .top_k = 3, .seed = 3}, kLogits, kDraws);
  EXPECT_LT(chi_square(counts, weights, kDraws), chi_square_bound(2));
  EXPECT_EQ(draw({.temperature = 1, .top_k = 1}, kLogits, 100).size(), 1u);
  EXPECT_EQ(draw({.temperature = 1, .top_k = 100, .seed = 8}, kLogits, 5000),
            draw({.temperature = 1, .seed = 8}, kLogits, 5000));
}

TEST(Sampler, TopKOfEqualTokensKeepsTheLowestIds) {
  const std::vector<float> flat(10, 1.0f);
  for (const auto& [token, count] : draw({.temperature = 1, .top_k = 4}, flat, 1000)) {
    EXPECT_LT(token, 4);
    EXPECT_GT(count, 150);
  }
}

TEST(Sampler, TopPKeepsTheSmallestSetOfThatMass) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.125f),
                                     std::log(0.25f)};
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.4}, logits, 500).size(), 1u);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.6}, logits, 500).size(), 2u);
  const auto three = draw({.temperature = 1, .top_p = 0.8, .seed = 5}, logits, 20000);
  EXPECT_LT(chi_square(three, {0.125, 0.5, 0, 0.25}, 20000), chi_square_bound(2));
  EXPECT_EQ(draw({.temperature = 1, .top_p = 1}, logits, 500).size(), 4u);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 1e-9}, logits, 100).size(), 1u);
}

TEST(Sampler, TopPCountsTheMassThatTopKLeft) {
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f),
                                     std::log(0.1f)};
  // Of 0.4 and 0.3 the first alone has 4/7 of the mass.
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.55, .top_k = 2}, logits, 500).size(), 1u);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.6, .top_k = 2}, logits, 500).size(), 2u);
}

TEST(Sampler, DrawsAreAFunctionOfTheSeedAndTheirNumber) {
  const auto sequence = [](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> out;
    for (int i = 0; i < 64; ++i) out.push_back(sampler.sample(kLogits));
    return out;
  };
  EXPECT_EQ(sequence(1), sequence(1));
  EXPECT_NE(sequence(1), sequence(2));
  // The i-th draw does not depend on the logits of the others.
  Sampler a({.temperature = 1, .seed = 4}), b({.temperature = 1, .seed = 4});
  a.sample(kLogits);
  b.sample(std::vector<float>(500, 0.5f));
  for (int i = 0; i < 64; ++i) EXPECT_EQ(a.sample(kLogits), b.sample(kLogits));
}

TEST(Sampler, ExtremesOfTemperature) {
  for (const double temperature : {1e-320, 1e-300, 1e-6}) {
    const auto counts = draw({.temperature = temperature}, kLogits, 100);
    ASSERT_EQ(counts.size(), 1u) << temperature;
    EXPECT_EQ(counts.begin()->first, 2) << temperature;
  }
  const auto flat = draw({.temperature = 1e300, .seed = 6}, kLogits, 16000);
  EXPECT_LT(chi_square(flat, std::vector<double>(8, 1.0), 16000), chi_square_bound(7));
}

TEST(Sampler, LogitsOfMinusInfinityAreNeverDrawn) {
  const std::vector<float> logits = {-kInf, 0, -kInf, 0, -kInf};
  for (const SamplerOptions& options :
       {SamplerOptions{.temperature = 1}, SamplerOptions{.temperature = 1, .top_p = 0.999999},
        SamplerOptions{.temperature = 1, .top_k = 4}}) {
    for (const auto& [token, count] : draw(options, logits, 2000)) EXPECT_TRUE(token % 2 == 1);
  }
}

TEST(Sampler, RefusesLogitsThatAreNoDistribution) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature});
    const std::vector<float> nan = {0, NAN, 1};
    expect_refused([&] { sampler.sample(nan); }, "logit of token 1 is");
    const std::vector<float> infinite = {0, 1, kInf, kInf};
    expect_refused([&] { sampler.sample(infinite); }, "logit of token 2 is");
    const std::vector<float> nothing = {-kInf, -kInf};
    expect_refused([&] { sampler.sample(nothing); }, "no token");
  }
}

TEST(Sampler, RefusesImpossibleOptions) {
  expect_refused([] { Sampler({.temperature = -0.1}); }, "temperature -0.1, want >= 0");
  expect_refused([] { Sampler({.temperature = NAN}); }, "want >= 0");
  expect_refused([] { Sampler({.temperature = INFINITY}); }, "want >= 0");
  expect_refused([] { Sampler({.top_p = 0}); }, "top_p 0, want in (0, 1]");
  expect_refused([] { Sampler({.top_p = 1.01}); }, "want in (0, 1]");
  expect_refused([] { Sampler({.top_p = NAN}); }, "want in (0, 1]");
  expect_refused([] { Sampler({.top_k = -1}); }, "top_k -1, want >= 0");
}

}  // namespace
}  // namespace braid
