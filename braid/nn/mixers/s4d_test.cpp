// Goal: Mamba-1 whose step, B and C do not depend on the token is S4D. Method: a Mamba-1 mixer in
// which they are read from one channel that is constant, and a constant gate, beside the S4D mixer
// of the same system; both with identities for projections.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "braid/nn/sublayer.h"
#include "braid/ops/gelu/gelu.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

constexpr int64_t kWidth = 8, kState = 5, kTokens = 60;

using Values = std::map<std::string, std::vector<float>>;

std::unique_ptr<Sublayer> make(Context& ctx, const SublayerSpec& spec, const Values& values) {
  auto layer = make_sublayer(spec, {.width = kWidth});
  for (Parameter* parameter : layer->parameters()) {
    const std::vector<float>& value = values.at(parameter->name);
    parameter->init = [&](std::span<float> to, const Rng&) {
      check(value.size() == to.size(), "{}: {} values, want {}", parameter->name, value.size(),
            to.size());
      std::copy(value.begin(), value.end(), to.begin());
    };
    initialize_parameter(ctx, *parameter, Rng(1), {});
  }
  return layer;
}

Tensor run(Context& ctx, const Sublayer& layer, const Tensor& x) {
  const SequenceBatch batch = SequenceBatch::single(x.rows());
  Stream stream(batch);
  return layer.forward(ctx, x, stream, nullptr);
}

std::vector<float> random(int64_t count, uint64_t seed) {
  const Tensor x = test::randn({count}, seed);
  return {x.f32(), x.f32() + count};
}

std::vector<float> identity(int64_t rows, float scale = 1) {
  std::vector<float> values(static_cast<size_t>(rows * kWidth));
  for (size_t i = 0; i < kWidth; ++i) values[i * kWidth + i] = scale;
  return values;
}

float silu(float x) { return x / (1 + std::exp(-x)); }

// Rank 1, B and C as x_proj makes them from the first channel alone; `other` leaks another one in.
Values mamba1_values(float other) {
  Values v;
  v["in_proj.weight"] = identity(2 * kWidth);
  v["in_proj.bias"] = std::vector<float>(2 * kWidth, 0.0f);
  std::fill_n(v["in_proj.bias"].begin() + kWidth, kWidth, 1.0f);  // the gate
  v["conv1d.weight"] = std::vector<float>(kWidth * 2, 0.0f);
  for (size_t e = 1; e < kWidth; ++e) v["conv1d.weight"][2 * e + 1] = 1;
  v["conv1d.bias"] = std::vector<float>(kWidth, 0.0f);
  v["conv1d.bias"][0] = 1;
  v["x_proj.weight"] = std::vector<float>((1 + 2 * kState) * kWidth, 0.0f);
  const auto column = random(1 + 2 * kState, 11);
  for (size_t i = 0; i < column.size(); ++i) v["x_proj.weight"][i * kWidth] = column[i];
  v["x_proj.weight"][3] = other;
  v["dt_proj.weight"] = random(kWidth, 12);
  v["dt_proj.bias"] = random(kWidth, 13);
  v["A_log"] = random(kWidth * kState, 14);
  v["D"] = random(kWidth, 15);
  v["out_proj.weight"] = identity(kWidth, 1 / silu(1));
  v["out_proj.bias"] = std::vector<float>(kWidth, 0.0f);
  return v;
}

Values s4d_values(const Values& mamba1) {
  const float u = silu(1);
  Values v;
  const auto& mixing = mamba1.at("x_proj.weight");
  v["dt_bias"] = mamba1.at("dt_proj.bias");
  for (size_t e = 0; e < kWidth; ++e) {
    v["dt_bias"][e] += mamba1.at("dt_proj.weight")[e] * mixing[0] * u;
    for (size_t n = 0; n < kState; ++n) {
      v["B"].push_back(mixing[(1 + n) * kWidth] * u);
      v["C"].push_back(mixing[(1 + kState + n) * kWidth] * u);
    }
  }
  v["A_log"] = mamba1.at("A_log");
  v["D"] = mamba1.at("D");
  v["output_linear.weight"] = identity(kWidth);
  v["output_linear.bias"] = std::vector<float>(kWidth, 0.0f);
  return v;
}

// Distance between the two, S4D's gelu applied to Mamba's output.
double distance(float other) {
  Context ctx;
  const Values values = mamba1_values(other);
  const auto mamba =
      make(ctx,
           SublayerSpec{
               "mamba1",
               {{"state", "5"}, {"expand", "1"}, {"conv", "2"}, {"dt_rank", "1"}, {"bias", "1"}}},
           values);
  const auto s4d =
      make(ctx, SublayerSpec{"s4d", {{"state", "5"}, {"output", "linear"}}}, s4d_values(values));
  Tensor x = test::randn({kTokens, kWidth}, 16), u = ctx.empty(x.shape());
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t e = 0; e < kWidth; ++e) {
      float& from = x.f32()[t * kWidth + e];
      u.f32()[t * kWidth + e] = silu(e == 0 ? 1 : from);
    }
  }
  return test::max_error(test::values(gelu(ctx, run(ctx, *mamba, x))),
                         test::values(run(ctx, *s4d, u)));
}

TEST(S4d, IsMamba1WithoutSelection) {
  EXPECT_LE(distance(0), test::tolerance(DType::kF32, kTokens));
  EXPECT_GT(distance(0.3f), 1e-2);  // a step that depends on the token makes another function
}

}  // namespace
}  // namespace braid
