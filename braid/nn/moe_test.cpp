// What the laws over the registry do not ask of moe: what it does in training alone, counts,
// precision, initialisation and refusals.

#include <gtest/gtest.h>

#include <cmath>

#include "braid/nn/sublayer.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::expect_refused;
using test::randn;
using test::same_bits;
using test::values;

constexpr int64_t kWidth = 24;

SublayerSpec spec_of(const std::string& choice, std::vector<SpecArg> options) {
  SublayerSpec spec{.name = "moe", .args = {{"", choice, 5}}, .column = 1};
  spec.args.insert(spec.args.end(), options.begin(), options.end());
  return spec;
}

struct Layer {
  Context ctx{{.threads = 2, .poison = true}};
  std::unique_ptr<Sublayer> moe;

  explicit Layer(const std::string& choice, std::vector<SpecArg> options = {},
                 const ParameterOptions& how = {}) {
    moe = make_sublayer(spec_of(choice, std::move(options)), {.width = kWidth});
    uint64_t stream = 0;
    for (Parameter* p : moe->parameters()) {
      initialize_parameter(ctx, *p, Rng(3).fork(stream++), how);
    }
  }
  Parameter& parameter(std::string_view name) {
    for (Parameter* p : moe->parameters()) {
      if (p->name == name) return *p;
    }
    throw std::out_of_range(std::string(name));
  }
  Tensor run(const Tensor& x, const StreamOptions& options = {}) {
    const SequenceBatch batch = SequenceBatch::single(x.rows());
    Stream stream(batch, options);
    return moe->forward(ctx, x, stream, nullptr);
  }
};

TEST(Moe, DropsWhatDoesNotFitInTrainingAlone) {
  Layer layer("4/1", {{"capacity", "0.5"}});
  const Tensor x = randn({64, kWidth}, 1);
  ExpertLoads loads;
  const Tensor limited = layer.run(x, {.noise = Rng(1), .loads = &loads});
  ASSERT_EQ(loads.layers.size(), 1u);
  int64_t kept = 0, chosen = 0;
  for (const int64_t n : loads.layers[0].tokens) kept += std::min<int64_t>(n, 8), chosen += n;
  EXPECT_EQ(chosen, 64);
  EXPECT_EQ(loads.layers[0].dropped, 64 - kept);
  EXPECT_GE(loads.layers[0].dropped, 32);
  const Tensor all = layer.run(x);
  int64_t zeros = 0;
  for (int64_t n = 0; n < 64; ++n) {
    const Tensor row = limited.slice_rows(n, n + 1);
    const std::vector<double> v = values(row);
    const bool dropped = std::ranges::all_of(v, [](double y) { return y == 0; });
    zeros += dropped;
    EXPECT_TRUE(dropped || same_bits(row, all.slice_rows(n, n + 1))) << n;
  }
  EXPECT_EQ(zeros, loads.layers[0].dropped);
}

TEST(Moe, JittersOnlyWhatTheRouterReads) {
  const Tensor x = randn({50, kWidth}, 2);
  Layer one("1/1", {{"jitter", "0.5"}}), two("8/2", {{"jitter", "0.5"}});
  EXPECT_TRUE(same_bits(one.run(x, {.noise = Rng(1)}), one.run(x)));
  const Tensor noisy = two.run(x, {.noise = Rng(1)});
  EXPECT_FALSE(same_bits(noisy, two.run(x)));
  EXPECT_TRUE(same_bits(noisy, two.run(x, {.noise = Rng(1)})));
  EXPECT_FALSE(same_bits(noisy, two.run(x, {.noise = Rng(2)})));
}

TEST(Moe, DropsElementsOfWhatExpertsAdd) {
  const Tensor x = randn({200, kWidth}, 2);
  Layer layer("4/2", {{"dropout", "0.25"}});
  const std::vector<double> whole = values(layer.run(x));
  const std::vector<double> left = values(layer.run(x, {.noise = Rng(1)}));
  double zeros = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    zeros += left[i] == 0;
    EXPECT_TRUE(left[i] == 0 || std::abs(left[i] / whole[i] - 1 / 0.75) < 1e-6) << i;
  }
  EXPECT_NEAR(zeros / static_cast<double>(whole.size()), 0.25, 0.03);
}

TEST(Moe, TheBiasMovesAgainstTheLoad) {
  Layer layer("4/2", {{"select_bias", "1"}, {"balance", "0.5"}});
  ExpertLoads loads;
  loads.add(0, std::vector<int32_t>{10, 4, 6, 0}, 0);
  layer.moe->after_step(layer.ctx, loads);
  EXPECT_EQ(values(layer.parameter("router.bias").value),
            (std::vector<double>{-0.5, 0.5, -0.5, 0.5}));
  loads.add(0, std::vector<int32_t>{0, 0, 4, 16}, 0);  // 10 4 10 16: the mean is 10
  layer.moe->after_step(layer.ctx, loads);
  EXPECT_EQ(values(layer.parameter("router.bias").value), (std::vector<double>{-0.5, 1, -0.5, 0}));
  layer.moe->after_step(layer.ctx, {});
  EXPECT_EQ(values(layer.parameter("router.bias").value), (std::vector<double>{-0.5, 1, -0.5, 0}));
}

TEST(Moe, TheBiasEvensTheLoads) {
  Layer layer("8/2", {{"select_bias", "1"}, {"balance", "0.0002"}});
  const Tensor x = randn({500, kWidth}, 4);
  const auto worst = [&] {
    ExpertLoads loads;
    layer.run(x, {.loads = &loads});
    layer.moe->after_step(layer.ctx, loads);
    return static_cast<double>(std::ranges::max(loads.layers[0].tokens)) / (500 * 2 / 8);
  };
  EXPECT_GT(worst(), 1.1);
  for (int step = 0; step < 200; ++step) worst();
  // A step moves the few tokens whose choice it can turn.
  EXPECT_LT(worst(), 1.04);
}

TEST(Moe, TheRouterStaysFloat32) {
  const Tensor x = randn({300, kWidth}, 5);
  Layer f32("16/2"), bf16("16/2", {}, {.matrix_dtype = DType::kBF16});
  EXPECT_EQ(bf16.parameter("router.weight").weight.dtype(), DType::kF32);
  EXPECT_EQ(bf16.parameter("experts.15.down.weight").weight.dtype(), DType::kBF16);
  ExpertLoads a, b;
  test::expect_close(bf16.run(x, {.loads = &a}), f32.run(x, {.loads = &b}),
                     test::tolerance(DType::kBF16, kWidth), "y");
  EXPECT_EQ(a.layers[0].tokens, b.layers[0].tokens);
}

TEST(Moe, ReadsNoTokens) {
  Layer layer("4/2", {{"shared", "1"}, {"shared_gate", "1"}, {"jitter", "0.1"}});
  ExpertLoads loads;
  EXPECT_EQ(layer.run(layer.ctx.empty({0, kWidth}), {.noise = Rng(1), .loads = &loads}).shape(),
            (Shape{0, kWidth}));
  EXPECT_EQ(loads.layers[0].tokens, std::vector<int64_t>(4, 0));
}

TEST(Moe, BeginsAsUsual) {
  Layer layer("64/2", {{"hidden", "64"}, {"shared", "3"}, {"act", "relu2"}}, {.trainable = true});
  const auto stddev = [&](std::string_view name) {
    const std::vector<double> v = values(layer.parameter(name).value);
    return std::sqrt(test::dot(v, v) / static_cast<double>(v.size()));
  };
  EXPECT_NEAR(stddev("router.weight"), 0.02, 0.002);
  EXPECT_NEAR(stddev("experts.63.up.weight"), std::pow(kWidth, -0.5), 0.02);
  EXPECT_NEAR(stddev("experts.0.down.weight"), std::pow(64, -0.5), 0.01);
  EXPECT_EQ(layer.parameter("shared.up.weight").shape, (Shape{192, kWidth}));
}

TEST(Moe, CountsWhatATokenReads) {
  Layer layer("16/4", {{"hidden", "32"}, {"shared_hidden", "10"}});
  double active = 0;
  for (const Parameter* p : layer.moe->parameters()) {
    active += p->active * static_cast<double>(p->shape.count());
  }
  const double want = kWidth * (16 + 4 * 3 * 32 + 3 * 10);
  EXPECT_DOUBLE_EQ(active, want);
  EXPECT_DOUBLE_EQ(layer.moe->matmul_flops(), 2 * want);
}

TEST(Moe, HasTheUsualDefaults) {
  Layer layer("8/3");  // 8/3 of 24 is 64, a third of it 22, rounded up
  EXPECT_EQ(layer.parameter("experts.0.down.weight").shape, (Shape{kWidth, 32}));
  EXPECT_EQ(layer.parameter("experts.7.gate_up.weight").shape, (Shape{64, kWidth}));
}

TEST(Moe, RefusesWhatDoesNotFit) {
  const auto refuses = [](const std::string& choice, std::vector<SpecArg> options,
                          std::string_view why) {
    expect_refused([&] { make_sublayer(spec_of(choice, options), {.width = kWidth}); }, why);
  };
  refuses("8/9", {}, "moe: column 5: experts is \"8/9\", want E/k: k of E");
  refuses("8", {}, "experts is \"8\", want E/k");
  refuses("8/2", {{"groups", "3", 9}}, "column 9: groups is \"3\", want a number that divides 8");
  refuses("8/2", {{"groups", "4"}, {"keep", "5"}}, "keep is \"5\", want an integer from 1 to 4");
  refuses("8/3", {{"groups", "4"}, {"keep", "1"}}, "want groups with at least 3 experts");
  refuses("8/2", {{"shared_gate", "1"}}, "want 0 without shared experts");
  refuses("8/2", {{"balance", "0.1"}}, "want select_bias=1 beside it");
  refuses("8/2", {{"router", "tanh"}}, "want one of softmax, sigmoid, selected");
  refuses("8/2", {{"act", "tanh"}}, "want one of swiglu, relu2");
  refuses("8/2", {{"dropout", "1"}}, "dropout is \"1\", want a number from 0 to 0.99");
  refuses("8/2", {{"capacity", "-1"}}, "capacity is \"-1\"");
  refuses("8/2", {{"experts", "8"}}, "experts is given twice");
}

}  // namespace
}  // namespace braid
