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

// What changes y, by row.
std::vector<int64_t> changed_rows(const Tensor& a, const Tensor& b) {
  std::vector<int64_t> rows;
  for (int64_t n = 0; n < a.rows(); ++n) {
    if (!same_bits(a.slice_rows(n, n + 1), b.slice_rows(n, n + 1))) rows.push_back(n);
  }
  return rows;
}

TEST(MoeReroute, BeginsAsPlainRouting) {
  const Tensor x = randn({60, kWidth}, 6);
  Layer plain("8/2", {{"select_bias", "1"}}),
      again("8/2", {{"select_bias", "1"}, {"reroute", "1"}});
  for (Parameter* p : plain.moe->parameters()) {  // each has its own stream of numbers
    initialize_parameter(again.ctx, again.parameter(p->name), Rng(p->shape.count()), {});
    initialize_parameter(plain.ctx, *p, Rng(p->shape.count()), {});
  }
  ExpertLoads a, b;
  EXPECT_TRUE(same_bits(plain.run(x, {.loads = &a}), again.run(x, {.loads = &b})));
  EXPECT_EQ(a.layers[0].tokens, b.layers[0].tokens);
  EXPECT_EQ(a.layers[0].reroutable, 0);
  EXPECT_EQ(b.layers[0].reroutable, 60);
  EXPECT_EQ(b.layers[0].rerouted, 60);  // no two probabilities are 1 apart
}

TEST(MoeReroute, OnlyCloseChoicesAreMadeAgain) {
  const Tensor x = randn({60, kWidth}, 6);
  Tensor outputs[3];
  int64_t rerouted[3] = {};
  for (int i = 0; i < 3; ++i) {
    Layer layer("8/2", {{"reroute", std::vector<std::string>{"0", "0.002", "1"}[i]}});
    Parameter& added = layer.parameter("reroute.weight");
    added.init = init_normal(1);
    initialize_parameter(layer.ctx, added, Rng(9), {});
    ExpertLoads loads;
    outputs[i] = layer.run(x, {.loads = &loads});
    rerouted[i] = loads.layers[0].rerouted;
  }
  EXPECT_EQ(rerouted[0], 0);
  EXPECT_GT(rerouted[1], 10);
  EXPECT_LT(rerouted[1], 50);
  EXPECT_EQ(rerouted[2], 60);
  // With other logits a token has other weights.
  const std::vector<int64_t> some = changed_rows(outputs[0], outputs[1]);
  EXPECT_EQ(std::ssize(some), rerouted[1]);
  EXPECT_EQ(std::ssize(changed_rows(outputs[0], outputs[2])), 60);
  for (const int64_t n : some) {
    EXPECT_TRUE(same_bits(outputs[1].slice_rows(n, n + 1), outputs[2].slice_rows(n, n + 1))) << n;
  }
}

TEST(MoeReroute, SummarisesWhatCameBefore) {
  Layer layer("8/2", {{"reroute", "1"}, {"context", "3"}, {"window", "16"}}, {.trainable = true});
  const Parameter& decay = layer.parameter("context_decay");
  for (int i = 0; i < 3; ++i) {  // memories of 1, 4 and 16 tokens
    EXPECT_NEAR(std::log1p(std::exp(values(decay.value)[static_cast<size_t>(i)])),
                std::pow(4.0, -i), 1e-6);
  }
  ASSERT_EQ(layer.moe->state_spec().size(), 1u);
  EXPECT_EQ(layer.moe->state_spec()[0].shape, (Shape{1, 3}));
  EXPECT_TRUE(Layer("8/2").moe->state_spec().empty());
  EXPECT_DOUBLE_EQ(layer.moe->matmul_flops() - Layer("8/2").moe->matmul_flops(),
                   2 * 3 * (kWidth + 8));

  const Tensor x = randn({7, kWidth}, 8);
  const SequenceBatch batch = SequenceBatch::single(7);
  Stream stream(batch);
  State state(layer.ctx.shared_api(), {layer.moe->state_spec()});
  State* states[] = {&state};
  const LayerState view(states, 0, batch);
  layer.moe->forward(layer.ctx, x, stream, &view);
  const std::vector<double> P = values(layer.parameter("context.weight").value), rows = values(x);
  for (size_t c = 0; c < 3; ++c) {
    const double delta = std::pow(4.0, -static_cast<double>(c));
    double s = 0;
    for (size_t t = 0; t < 7; ++t) {
      double read = 0;
      for (size_t i = 0; i < kWidth; ++i) read += P[c * kWidth + i] * rows[t * kWidth + i];
      s = std::exp(-delta) * s + delta * read;
    }
    EXPECT_NEAR(state.fixed(0, 0)[c], s, test::tolerance(DType::kF32, kWidth)) << c;
  }
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
  refuses("8/8", {{"reroute", "0.1"}}, "want more experts to choose among than a token chooses");
  refuses("8/2", {{"groups", "4"}, {"keep", "1"}, {"reroute", "0.1"}}, "want more experts");
  refuses("8/2", {{"reroute", "-1"}}, "reroute is \"-1\"");
  refuses("8/2", {{"context", "8"}}, "unknown option context, want one of");
}

}  // namespace
}  // namespace braid
