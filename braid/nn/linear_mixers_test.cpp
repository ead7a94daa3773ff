// Goal: the linear-attention mixers compute what their headers say, for every feature map, and are
// one thing where they should be. Method: the sum over all earlier tokens, written out in float64
// from the mixer's own parameters, beside the mixer's forward.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "braid/nn/mixers/lightning.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/favor_features/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;
using Matrix = std::vector<double>;  // row-major

constexpr int64_t kWidth = 32, kTokens = 40;

struct Layer {
  Context ctx{{.threads = 2, .poison = true}};
  std::unique_ptr<Sublayer> mixer;
  std::map<std::string, Matrix> weights;

  Layer(const std::string& name, std::vector<SpecArg> args, const SublayerConfig& config) {
    mixer = make_sublayer({.name = name, .args = std::move(args)}, config);
    uint64_t stream = 0;
    for (Parameter* p : mixer->parameters()) {
      initialize_parameter(ctx, *p, Rng(3).fork(stream++), {.trainable = true});
      weights[p->name] = values(p->value);
    }
  }
  Matrix forward(const Tensor& x) {
    const SequenceBatch batch = SequenceBatch::single(x.rows());
    Stream stream(batch);
    return values(mixer->forward(ctx, x, stream, nullptr));
  }
  // x (rows, in) times W^T.
  Matrix times(const Matrix& x, const std::string& name, int64_t in) const {
    const Matrix& w = weights.at(name);
    const size_t n = static_cast<size_t>(in), rows = x.size() / n, out = w.size() / n;
    Matrix y(rows * out, 0.0);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t o = 0; o < out; ++o) {
        for (size_t d = 0; d < n; ++d) y[i * out + o] += x[i * n + d] * w[o * n + d];
      }
    }
    return y;
  }
};

Matrix mapped(Matrix x, const std::function<double(double)>& f) {
  for (double& v : x) v = f(v);
  return x;
}

// o_t = sum_{j <= t} decay(h, t, j) (q_t . k_j) v_j per head; `sums` gets the same with v = 1.
Matrix attend(const Matrix& q, const Matrix& k, const Matrix& v, size_t heads, size_t key_dim,
              const std::function<double(size_t h, size_t t, size_t j)>& decay, Matrix* sums) {
  const size_t value_dim = v.size() / (kTokens * heads);
  Matrix o(v.size(), 0.0);
  sums->assign(kTokens * heads, 0.0);
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      for (size_t j = 0; j <= t; ++j) {
        double score = 0;
        for (size_t i = 0; i < key_dim; ++i) {
          score += q[(t * heads + h) * key_dim + i] * k[(j * heads + h) * key_dim + i];
        }
        score *= decay(h, t, j);
        (*sums)[t * heads + h] += score;
        for (size_t i = 0; i < value_dim; ++i) {
          o[(t * heads + h) * value_dim + i] += score * v[(j * heads + h) * value_dim + i];
        }
      }
    }
  }
  return o;
}

double undecayed(size_t, size_t, size_t) { return 1.0; }

double elu1(double x) { return x > 0 ? x + 1 : std::exp(x); }
double relu(double x) { return std::max(x, 0.0); }
double silu(double x) { return x / (1 + std::exp(-x)); }

const double kTolerance = tolerance(DType::kF32, 4 * kWidth + kTokens);

TEST(LinearAttn, IsTheNormalisedSumOverAllEarlierTokens) {
  const Tensor x = randn({kTokens, kWidth}, 1);
  const std::pair<std::string, double (*)(double)> features[] = {{"elu1", &elu1}, {"relu", &relu}};
  for (const auto& [name, f] : features) {
    // relu: an offset of the sums, since both may be zero.
    Layer layer(
        "linear_attn",
        {{"heads", "2"}, {"value", "12"}, {"feature", name}, {"normalise", "1"}, {"eps", "0.01"}},
        {.width = kWidth});
    const Matrix in = values(x);
    Matrix n;
    Matrix o = attend(mapped(layer.times(in, "q_proj.weight", kWidth), f),
                      mapped(layer.times(in, "k_proj.weight", kWidth), f),
                      layer.times(in, "v_proj.weight", kWidth), 2, 16, &undecayed, &n);
    const double eps = static_cast<double>(0.01f);
    for (size_t i = 0; i < o.size(); ++i) o[i] /= n[i / 12] + eps;
    expect_close(layer.forward(x), layer.times(o, "o_proj.weight", 24), kTolerance, name.c_str());
  }
}

TEST(LinearAttn, WithTheIdentityIsAttentionWithoutTheSoftmax) {
  const Tensor x = randn({kTokens, kWidth}, 2);
  for (const bool gate : {false, true}) {
    std::vector<SpecArg> args{{"heads", "4"}, {"feature", "identity"}};
    args.push_back({gate ? "gate" : "norm", gate ? "1" : "0"});
    Layer layer("linear_attn", args, {.width = kWidth});
    const Matrix in = values(x);
    Matrix n;
    Matrix o =
        attend(layer.times(in, "q_proj.weight", kWidth), layer.times(in, "k_proj.weight", kWidth),
               layer.times(in, "v_proj.weight", kWidth), 4, 8, &undecayed, &n);
    for (double& v : o) v /= std::sqrt(8.0);
    if (gate) {
      const Matrix g = layer.times(in, "g_proj.weight", kWidth);
      for (size_t head = 0; head < o.size(); head += 8) {
        double square = 0;
        for (size_t i = head; i < head + 8; ++i) square += o[i] * o[i];
        const double r = 1 / std::sqrt(square / 8 + static_cast<double>(1e-5f));
        for (size_t i = head; i < head + 8; ++i) o[i] *= r * silu(g[i]);
      }
    }
    expect_close(layer.forward(x), layer.times(o, "o_proj.weight", kWidth),
                 gate ? 8 * kTolerance : kTolerance, gate ? "gated" : "plain");
  }
}

TEST(LinearAttn, WithRandomFeaturesIsTheSumUnderTheRunningMaximum) {
  const Tensor x = randn({kTokens, kWidth}, 3);
  Layer layer("linear_attn", {{"heads", "2"}, {"feature", "favor"}, {"features", "37"}},
              {.width = kWidth});
  const Matrix in = values(x), w = layer.weights.at("projection");
  const double eps = static_cast<double>(1e-4f);
  const auto q =
      reference::favor(layer.times(in, "q_proj.weight", kWidth), w, {}, 2, 16, eps, false);
  const auto k =
      reference::favor(layer.times(in, "k_proj.weight", kWidth), w, {}, 2, 16, eps, true);
  Matrix n;
  Matrix o = attend(
      q.features, k.features, layer.times(in, "v_proj.weight", kWidth), 2, 37,
      [&](size_t h, size_t t, size_t j) {
        double log = 0;
        for (size_t i = j + 1; i <= t; ++i) log += k.log_decay[i * 2 + h];
        return std::exp(log);
      },
      &n);
  for (size_t i = 0; i < o.size(); ++i) o[i] /= n[i / 16];
  expect_close(layer.forward(x), layer.times(o, "o_proj.weight", kWidth), 4 * kTolerance, "favor");
}

TEST(LinearAttn, ProjectionRowsAreOrthogonalInBlocksAndOfGaussianLength) {
  Layer layer("linear_attn", {{"heads", "2"}, {"feature", "favor"}, {"features", "40"}},
              {.width = kWidth});
  const Matrix w = layer.weights.at("projection");
  double squares = 0;
  for (size_t a = 0; a < 40; ++a) {
    for (size_t b = 0; b < 40; ++b) {
      double along = 0;
      for (size_t d = 0; d < 16; ++d) along += w[a * 16 + d] * w[b * 16 + d];
      if (a == b) {
        squares += along;
      } else if (a / 16 == b / 16) {
        EXPECT_NEAR(along, 0, 1e-4) << a << " and " << b;
      }
    }
  }
  // 640 squares of standard normals: mean 640, variance 2 * 640; six standard deviations.
  EXPECT_NEAR(squares, 640, 6 * std::sqrt(2.0 * 640));
}

TEST(Lightning, DecaysByHeadAndLayer) {
  const Tensor x = randn({kTokens, kWidth}, 4);
  for (const int64_t ordinal : {0, 1, 3}) {
    Layer layer("lightning", {{"heads", "4"}}, {.width = kWidth, .ordinal = ordinal, .of_kind = 4});
    const Matrix qkvu = layer.times(values(x), "qkvu_proj.weight", kWidth);
    Matrix part[4];
    for (size_t i = 0; i < qkvu.size(); ++i) part[i / kWidth % 4].push_back(qkvu[i]);
    const double factor = 1.0 - static_cast<double>(ordinal) / 3.0 + 1e-5;
    Matrix n;
    Matrix o = attend(
        mapped(part[0], &silu), mapped(part[1], &silu), part[2], 4, 8,
        [&](size_t h, size_t t, size_t j) {
          const double slope = std::pow(2.0, -2.0 * static_cast<double>(h + 1)) * factor;
          return std::exp(-slope * static_cast<double>(t - j));
        },
        &n);
    for (size_t t = 0; t < o.size(); t += kWidth) {
      double square = 0;
      for (size_t i = t; i < t + kWidth; ++i) square += o[i] * o[i];
      const double r = 1 / std::sqrt(square / kWidth + static_cast<double>(1e-6f));
      for (size_t i = t; i < t + kWidth; ++i) o[i] *= r * part[3][i];
    }
    expect_close(layer.forward(x), layer.times(o, "out_proj.weight", kWidth), 4 * kTolerance, "y");
  }
}

// The variant of MiniMax-01, whose decay is given, with learned positions as well. Without a decay
// it is linear attention.
class LightningVariant : public ::testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Decays, LightningVariant, ::testing::Values(0.0, 0.5));

TEST_P(LightningVariant, GatesWeighsAndTurnsAsAsked) {
  const Tensor x = randn({kTokens, kWidth}, 14);
  Layer layer("lightning",
              {{"heads", "4"},
               {"lrpe", "1"},
               {"value_silu", "1"},
               {"gate", "sigmoid"},
               {"norm_weight", "1"},
               {"slopes", "geometric"},
               {"decay", format_number(GetParam())}},
              {.width = kWidth});
  const Matrix qkvu = layer.times(values(x), "qkvu_proj.weight", kWidth);
  Matrix part[4];
  for (size_t i = 0; i < qkvu.size(); ++i) part[i / kWidth % 4].push_back(qkvu[i]);
  const Matrix& theta = layer.weights.at("lrpe.theta");
  const auto turned = [&](const Matrix& in) {
    Matrix out(2 * in.size());
    for (size_t i = 0; i < in.size(); ++i) {
      const double angle = theta[i % kWidth] * static_cast<double>(i / kWidth);
      out[i / 8 * 16 + i % 8] = silu(in[i]) * std::cos(angle);
      out[i / 8 * 16 + 8 + i % 8] = silu(in[i]) * std::sin(angle);
    }
    return out;
  };
  Matrix n;
  Matrix o = attend(
      turned(part[0]), turned(part[1]), mapped(part[2], &silu), 4, 16,
      [](size_t h, size_t t, size_t j) {
        return std::exp(-GetParam() * std::pow(2.0, -2.0 * static_cast<double>(h + 1)) *
                        static_cast<double>(t - j));
      },
      &n);
  for (size_t t = 0; t < o.size(); t += kWidth) {
    double square = 0;
    for (size_t i = t; i < t + kWidth; ++i) square += o[i] * o[i];
    const double r = 1 / std::sqrt(square / kWidth + static_cast<double>(1e-6f));
    for (size_t i = t; i < t + kWidth; ++i) o[i] *= r / (1 + std::exp(-part[3][i]));
  }
  expect_close(layer.forward(x), layer.times(o, "out_proj.weight", kWidth), 4 * kTolerance, "y");
}

TEST(Lightning, SlopesAreThoseOfAlibi) {
  const auto expect = [](int64_t heads, const std::vector<double>& exponents) {
    const auto slopes = alibi_slopes(heads);
    ASSERT_EQ(slopes.size(), exponents.size());
    for (size_t i = 0; i < slopes.size(); ++i) EXPECT_EQ(slopes[i], std::exp2(exponents[i]));
  };
  expect(1, {-8});
  expect(4, {-2, -4, -6, -8});
  expect(6, {-2, -4, -6, -8, -1, -3});
}

// Two key heads of 4 channels, four value heads of 6; a convolution of width 4.
TEST(GatedDelta, IsItsFormula) {
  const Tensor x = randn({kTokens, kWidth}, 9);
  Layer layer("gated_delta", {{"key_heads", "2"}, {"dim", "4"}, {"value", "6"}},
              {.width = kWidth, .norm_eps = 1e-3});
  constexpr size_t kChannels = 2 * 8 + 24;
  const Matrix in = values(x), raw = layer.times(in, "in_proj_qkv.weight", kWidth);
  const Matrix z = layer.times(in, "in_proj_z.weight", kWidth);
  const Matrix ba = layer.times(in, "in_proj_ba.weight", kWidth);
  const auto at = [&](const char* name, size_t i) { return layer.weights.at(name)[i]; };
  Matrix mixed(raw.size(), 0.0);
  for (size_t i = 0; i < raw.size(); ++i) {
    const size_t t = i / kChannels, c = i % kChannels;
    for (size_t w = 0; w < 4; ++w) {
      if (t + w >= 3) mixed[i] += at("conv1d.weight", c * 4 + w) * raw[(t + w - 3) * kChannels + c];
    }
    mixed[i] = silu(mixed[i]);
  }
  Matrix out(kTokens * 24, 0.0);
  for (size_t h = 0; h < 4; ++h) {
    Matrix state(4 * 6, 0.0);
    for (size_t t = 0; t < kTokens; ++t) {
      const double* q = &mixed[t * kChannels + h / 2 * 4];
      const double* k = q + 8;
      const double* v = &mixed[t * kChannels + 16 + h * 6];
      double q_square = 1e-6, k_square = 1e-6, square = 0;
      for (size_t i = 0; i < 4; ++i) q_square += q[i] * q[i], k_square += k[i] * k[i];
      const double beta = 1 / (1 + std::exp(-ba[t * 8 + h]));
      const double step = std::log1p(std::exp(ba[t * 8 + 4 + h] + at("dt_bias", h)));
      const double decay = std::exp(-std::exp(at("A_log", h)) * step);
      double* o = &out[t * 24 + h * 6];
      for (size_t j = 0; j < 6; ++j) {
        double predicted = 0;
        for (size_t i = 0; i < 4; ++i) {
          state[i * 6 + j] *= decay;
          predicted += state[i * 6 + j] * k[i] / std::sqrt(k_square);
        }
        for (size_t i = 0; i < 4; ++i) {
          state[i * 6 + j] += k[i] / std::sqrt(k_square) * beta * (v[j] - predicted);
          o[j] += state[i * 6 + j] * q[i] / std::sqrt(q_square) / 2;
        }
        square += o[j] * o[j];
      }
      const double r = 1 / std::sqrt(square / 6 + static_cast<double>(1e-3f));
      for (size_t j = 0; j < 6; ++j) o[j] *= r * at("norm.weight", j) * silu(z[t * 24 + h * 6 + j]);
    }
  }
  expect_close(layer.forward(x), layer.times(out, "out_proj.weight", 24), 4 * kTolerance, "y");
}

// Retention without a decay is linear attention with the identity map, forwards and backwards.
TEST(Retention, WithoutADecayIsLinearAttention) {
  Context ctx({.threads = 2, .poison = true});
  const LinearAttentionOptions o{.heads = 2, .key_dim = 8, .value_dim = 12};
  const SequenceBatch batch = SequenceBatch::single(kTokens);
  std::vector<std::vector<Tensor>> results;
  for (const Tensor& log_decay : {Tensor(), ctx.zeros({2}), ctx.zeros({kTokens, 2})}) {
    Tensor q = randn({kTokens, 16}, 5), k = randn({kTokens, 16}, 6), v = randn({kTokens, 24}, 7);
    Tape tape;
    for (Tensor* leaf : {&q, &k, &v}) tape.watch(*leaf);
    Context taped = ctx.with_tape(&tape);
    const Tensor y =
        linear_attention(taped, {.q = q, .k = k, .v = v, .log_decay = log_decay}, {}, batch, o).y;
    tape.backward(ctx, {y}, {randn(y.shape(), 8)});
    results.push_back({y, tape.grad(q), tape.grad(k), tape.grad(v)});
  }
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(same_bits(results[1][i], results[0][i])) << i;
    EXPECT_TRUE(same_bits(results[2][i], results[0][i])) << i;
  }
}

TEST(LinearAttn, RefusesWhatCannotBe) {
  const auto refuses = [](std::vector<SpecArg> args) {
    EXPECT_THROW(make_sublayer({.name = "linear_attn", .args = std::move(args)}, {.width = kWidth}),
                 Error);
  };
  refuses({{"heads", "5"}});
  refuses({{"feature", "cosine"}});
  refuses({{"feature", "identity"}, {"normalise", "1"}});
  refuses({{"gate", "1"}});
  refuses({{"features", "12"}});
  EXPECT_THROW(make_sublayer({.name = "retnet", .args = {{"heads", "32"}}}, {.width = kWidth}),
               Error);
  EXPECT_THROW(make_sublayer({.name = "lightning", .args = {{"heads", "5"}}}, {.width = kWidth}),
               Error);
}

}  // namespace
}  // namespace braid
