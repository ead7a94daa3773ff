#include "braid/nn/mixers/rwkv7.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/init.h"
#include "braid/ops/token_shift/token_shift.h"
#include "braid/ops/wkv7/wkv7.h"
#include "braid/ops/wkv7_inputs/wkv7_inputs.h"
#include "braid/ops/wkv7_output/wkv7_output.h"

namespace braid {
namespace {

// The authors' rank: `factor` sqrt(D) to the nearest multiple of 32, and not zero.
int64_t default_rank(double factor, int64_t width) {
  const double rank = factor * std::sqrt(static_cast<double>(width));
  return std::max<int64_t>(32, 32 * std::llround(rank / 32));
}

// A vector whose i-th value is f(i).
template <class F>
Initializer init_by_index(F f) {
  return [f](std::span<float> values, const Rng&) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(f(i));
  };
}

// The shapes that the authors start vectors from, by channel i of a width D.
struct Shapes {
  double width, head;
  double depth, height;  // layer / (L - 1), 1 - layer / L

  Shapes(const SublayerConfig& config, int64_t head_dim)
      : width(static_cast<double>(config.width)),
        head(static_cast<double>(head_dim)),
        depth(static_cast<double>(config.ordinal) /
              static_cast<double>(std::max<int64_t>(1, config.of_kind - 1))),
        height(1 - static_cast<double>(config.ordinal) / static_cast<double>(config.of_kind)) {}

  double along(size_t i) const { return static_cast<double>(i) / std::max(1.0, width - 1); }
  double linear(size_t i) const { return along(i) - 0.5; }
  double zigzag(size_t i) const {
    const double middle = (head - 1) / 2;
    const double u = (std::fmod(static_cast<double>(i), head) - middle) / middle;
    return u * std::abs(u);
  }
  double decay(size_t i) const {
    return -6 + 6 * std::pow(along(i), 1 + std::pow(depth, 0.3)) + 0.5 + 2.5 * zigzag(i);
  }
  double shift(size_t i, double exponent) const {
    return 1 - std::pow(static_cast<double>(i) / width, exponent * height);
  }
};

}  // namespace

Rwkv7Mixer::Rwkv7Mixer(const SublayerConfig& config, SpecOptions& options)
    : width_(config.width),
      head_dim_(options.integer("head", 64, 8, 128)),
      first_(config.ordinal == 0) {
  const int64_t D = width_, P = head_dim_;
  if (P % 8 != 0) options.refuse("head", "a multiple of 8");
  if (D % P != 0) options.refuse("head", "a divisor of the width");
  heads_ = D / P;
  eps_ = static_cast<float>(options.number("eps", 64e-5, 0, 1));
  const auto rank = [&](const char* name, double factor) {
    return LowRank::Sizes{D, options.integer(name, default_rank(factor, D), 1, 65536), D};
  };
  const auto w = rank("w", 2.5), a = rank("a", 2.5), v = rank("v", 1.7), g = rank("g", 5);

  const Shapes at(config, P);
  constexpr std::pair<const char*, double> kShift[kStreams] = {
      {"x_r", 0.2}, {"x_w", 0.9}, {"x_k", 0.7}, {"x_v", 0.7}, {"x_a", 0.9}, {"x_g", 0.2}};
  for (size_t m = 0; m < kStreams; ++m) {
    const auto& [name, exponent] = kShift[m];
    mu_[m] = {.name = name, .shape = {D}, .init = init_by_index([at, e = exponent](size_t i) {
                                            return at.shift(i, e);
                                          })};
  }
  decay_ =
      LowRank("w", w, Activation::kTanh, init_by_index([at](size_t i) { return at.decay(i); }));
  rate_ = LowRank("a", a, {}, init_by_index([at](size_t i) {
                    return -0.19 + 0.3 * at.zigzag(i) + 0.4 * at.linear(i);
                  }));
  mix_ = LowRank("v", v, {}, init_by_index([at](size_t i) { return 0.73 - 0.4 * at.linear(i); }));
  gate_ = LowRank("g", g, Activation::kSigmoid);
  k_k_ = {.name = "k_k", .shape = {D}, .init = init_by_index([at](size_t i) {
                                         return 0.71 - 0.1 * at.linear(i);
                                       })};
  k_a_ = {.name = "k_a", .shape = {D}, .init = init_constant(1.02f)};
  r_k_ = {.name = "r_k", .shape = {heads_, P}, .init = init_constant(-0.04f)};
  receptance_ = Linear("receptance", D, D, false, init_orthogonal(D, D, 1));
  key_ = Linear("key", D, D, false, init_orthogonal(D, D, 0.1));
  value_ = Linear("value", D, D, false, init_orthogonal(D, D, 1));
  output_ = Linear("output", D, D, false, init_constant(0));
  const double layer =
      static_cast<double>(config.ordinal + 1) / static_cast<double>(config.of_kind);
  norm_weight_ = {.name = "ln_x.weight",
                  .shape = {D},
                  .init = init_constant(static_cast<float>(std::pow(layer, 0.7)))};
  norm_bias_ = {.name = "ln_x.bias", .shape = {D}, .init = init_constant(0)};
}

Tensor Rwkv7Mixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                           const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  std::vector<Tensor> mu;
  for (const Parameter& one : mu_) mu.push_back(one.value);
  const std::vector<Tensor> shifted = through_slot(
      state, 0, [&](const Tensor& initial) { return token_shift(ctx, x, mu, initial, batch); },
      [&](std::span<float* const> last) { return token_shift_in_place(ctx, x, mu, last, batch); });
  const Tensor &x_r = shifted[0], &x_w = shifted[1], &x_k = shifted[2], &x_v = shifted[3],
               &x_a = shifted[4], &x_g = shifted[5];

  const Tensor r = receptance_.forward(ctx, x_r);
  Tensor v = value_.forward(ctx, x_v);
  Wkv7Raw raw{.decay = decay_.forward(ctx, x_w),
              .k = key_.forward(ctx, x_k),
              .rate = rate_.forward(ctx, x_a),
              .k_k = k_k_.value,
              .k_a = k_a_.value,
              .v = {},
              .v_first = {},
              .v_mix = {}};
  if (first_) {
    stream.publish(kFirstValues, v);
  } else {
    raw.v = v;
    raw.v_first = stream.value(kFirstValues);
    raw.v_mix = mix_.forward(ctx, x_v);
  }
  const Wkv7Prepared made = wkv7_inputs(ctx, raw, heads_);
  if (!first_) v = made.v;

  const Wkv7Inputs inputs{
      .r = r, .log_decay = made.log_decay, .k = made.k, .v = v, .a = made.a, .b = made.b};
  const Tensor y = through_slot(
      state, 1, [&](const Tensor& initial) { return wkv7(ctx, inputs, initial, heads_, batch); },
      [&](std::span<float* const> states) {
        return wkv7_in_place(ctx, inputs, states, heads_, batch);
      });
  const Wkv7OutputInputs reading{.y = y,
                                 .r = r,
                                 .k = made.k,
                                 .v = v,
                                 .gate = gate_.forward(ctx, x_g),
                                 .r_k = r_k_.value,
                                 .weight = norm_weight_.value,
                                 .bias = norm_bias_.value};
  return output_.forward(ctx, wkv7_output(ctx, reading, heads_, eps_));
}

StateSpec Rwkv7Mixer::state_spec() const {
  return {{.name = "shift", .shape = {width_}},
          {.name = "wkv", .shape = {heads_, head_dim_, head_dim_}}};
}

std::vector<Parameter*> Rwkv7Mixer::parameters() {
  std::vector<Parameter*> out;
  for (Parameter& one : mu_) out.push_back(&one);
  decay_.collect(out);
  rate_.collect(out);
  if (!first_) mix_.collect(out);
  gate_.collect(out);
  out.insert(out.end(), {&k_k_, &k_a_, &r_k_});
  receptance_.collect(out);
  key_.collect(out);
  value_.collect(out);
  out.insert(out.end(), {&norm_weight_, &norm_bias_});
  output_.collect(out);
  return out;
}

double Rwkv7Mixer::matmul_flops() const {
  return receptance_.matmul_flops() + key_.matmul_flops() + value_.matmul_flops() +
         output_.matmul_flops() + decay_.matmul_flops() + rate_.matmul_flops() +
         gate_.matmul_flops() + (first_ ? 0 : mix_.matmul_flops());
}

}  // namespace braid
