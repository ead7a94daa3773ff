#include "braid/nn/mixers/mamba2.h"

#include <cmath>

#include "braid/nn/mixers/state_space_init.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/short_conv/short_conv.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

void init_a_log(std::span<float> values, const Rng& rng) {
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(std::log(1.0 + 15.0 * rng.uniform(i)));
  }
}

}  // namespace

Mamba2Mixer::Mamba2Mixer(const SublayerConfig& config, SpecOptions& options)
    : eps_(static_cast<float>(config.norm_eps)) {
  const int64_t D = config.width;
  ssd_.state = options.integer("state", 128, 1, 4096);
  ssd_.head_dim = options.integer("head", 64, 1, 4096);
  ssd_.groups = options.integer("groups", 1);
  if (options.has("heads")) {
    if (options.has("expand")) options.refuse("expand", "either heads or expand");
    ssd_.heads = options.integer("heads", 1);
  } else {
    const int64_t inner = D * options.integer("expand", 2, 1, 64);
    if (inner % ssd_.head_dim != 0) options.refuse("head", "a divisor of the inner width");
    ssd_.heads = inner / ssd_.head_dim;
  }
  if (ssd_.heads % ssd_.groups != 0) options.refuse("groups", "a divisor of the heads");
  const int64_t E = ssd_.heads * ssd_.head_dim;
  const int64_t channels = E + 2 * ssd_.groups * ssd_.state;
  norm_ = options.flag("norm", true);
  norm_groups_ = options.integer("norm_groups", ssd_.groups);
  if (E % norm_groups_ != 0) options.refuse("norm_groups", "a divisor of the inner width");
  norm_before_gate_ = options.flag("norm_before_gate", false);
  ssd_.dt_min = static_cast<float>(options.number("dt_min", 0.0));
  ssd_.dt_max = static_cast<float>(
      options.number("dt_max", SpecOptions::kInfinity, 0.0, SpecOptions::kInfinity));
  if (ssd_.dt_min > ssd_.dt_max) options.refuse("dt_min", "at most dt_max");
  ssd_.chunk = options.integer("chunk", 64, 1, 4096);
  conv_width_ = options.integer("conv", 4, 2, 16);
  conv_bias_ = options.flag("conv_bias", true);
  const bool bias = options.flag("bias", false);
  const bool out_bias = options.flag("out_bias", bias);
  const std::vector<double> scales = options.numbers("scales", -1e6, 1e6);
  if (!scales.empty()) {
    if (scales.size() != 5) options.refuse("scales", "five numbers, of z, x, B, C and dt");
    const int64_t GN = ssd_.groups * ssd_.state;
    const int64_t widths[] = {E, E, GN, GN, ssd_.heads};
    for (size_t i = 0; i < 5; ++i) scales_.push_back({widths[i], static_cast<float>(scales[i])});
  }

  in_proj_ = Linear("in_proj", D, E + channels + ssd_.heads, bias, projection_init(D));
  out_proj_ = Linear("out_proj", E, D, out_bias, residual_init(E, config.count));
  const float bound = 1.0f / std::sqrt(static_cast<float>(conv_width_));
  conv_weight_ = {.name = "conv1d.weight",
                  .shape = {channels, conv_width_},
                  .init = init_uniform(-bound, bound)};
  conv_bias_parameter_ = {
      .name = "conv1d.bias", .shape = {channels}, .init = init_uniform(-bound, bound)};
  dt_bias_ = {.name = "dt_bias", .shape = {ssd_.heads}, .init = init_step_bias()};
  A_log_ = {.name = "A_log", .shape = {ssd_.heads}, .init = init_a_log};
  D_ = {.name = "D", .shape = {ssd_.heads}, .init = init_constant(1)};
  norm_weight_ = {.name = "norm.weight", .shape = {E}, .init = init_constant(1)};
}

Tensor Mamba2Mixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                            const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const int64_t E = ssd_.heads * ssd_.head_dim, GN = ssd_.groups * ssd_.state;
  const int64_t of_projection[] = {E, E + 2 * GN, ssd_.heads};
  Tensor projected = in_proj_.forward(ctx, x);
  if (!scales_.empty()) projected = scale_columns(ctx, projected, scales_);
  const auto z_xBC_dt = split_columns(ctx, projected, of_projection);

  const ShortConvOptions conv{.silu = true};
  const Tensor conv_bias = conv_bias_ ? conv_bias_parameter_.value : Tensor{};
  const int64_t of_conv[] = {E, GN, GN};
  const Tensor xBC = through_slot(
      state, 0,
      [&](const Tensor& initial) {
        return short_conv(ctx, z_xBC_dt[1], conv_weight_.value, conv_bias, initial, batch, conv);
      },
      [&](std::span<float* const> tails) {
        return short_conv_in_place(ctx, z_xBC_dt[1], conv_weight_.value, conv_bias, tails, batch,
                                   conv);
      });
  const auto x_B_C = split_columns(ctx, xBC, of_conv);
  const SsdInputs inputs{.x = x_B_C[0],
                         .b = x_B_C[1],
                         .c = x_B_C[2],
                         .dt_raw = z_xBC_dt[2],
                         .dt_bias = dt_bias_.value,
                         .a_log = A_log_.value,
                         .d = D_.value};
  const Tensor y = through_slot(
      state, 1, [&](const Tensor& initial) { return ssd(ctx, inputs, initial, batch, ssd_); },
      [&](std::span<float* const> states) {
        return ssd_in_place(ctx, inputs, states, batch, ssd_);
      });
  return out_proj_.forward(ctx, gate(ctx, y, z_xBC_dt[0]));
}

Tensor Mamba2Mixer::gate(Context& ctx, const Tensor& y, const Tensor& z) const {
  if (!norm_) return multiply(ctx, y, activation(ctx, z, Activation::kSilu));
  return gated_rms_norm(
      ctx, y, z, norm_weight_.value,
      {.groups = norm_groups_, .eps = eps_, .norm_before_gate = norm_before_gate_});
}

StateSpec Mamba2Mixer::state_spec() const {
  const int64_t E = ssd_.heads * ssd_.head_dim, GN = ssd_.groups * ssd_.state;
  return {{.name = "conv", .shape = {conv_width_ - 1, E + 2 * GN}},
          {.name = "ssm", .shape = {ssd_.heads, ssd_.head_dim, ssd_.state}}};
}

std::vector<Parameter*> Mamba2Mixer::parameters() {
  std::vector<Parameter*> out;
  in_proj_.collect(out);
  out.push_back(&conv_weight_);
  if (conv_bias_) out.push_back(&conv_bias_parameter_);
  out.insert(out.end(), {&dt_bias_, &A_log_, &D_});
  if (norm_) out.push_back(&norm_weight_);
  out_proj_.collect(out);
  return out;
}

double Mamba2Mixer::matmul_flops() const {
  return in_proj_.matmul_flops() + out_proj_.matmul_flops();
}

}  // namespace braid
