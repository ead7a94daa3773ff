#include "braid/nn/mixers/mamba1.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/state_space_init.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/selective_scan/selective_scan.h"
#include "braid/ops/short_conv/short_conv.h"
#include "braid/ops/view/view.h"

namespace braid {

Mamba1Mixer::Mamba1Mixer(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  state_ = options.integer("state", 16, 1, 4096);
  if (options.has("inner")) {
    if (options.has("expand")) options.refuse("expand", "either inner or expand");
    inner_ = options.integer("inner", 1);
  } else {
    inner_ = D * options.integer("expand", 2, 1, 64);
  }
  conv_width_ = options.integer("conv", 4, 2, 16);
  dt_rank_ = options.integer("dt_rank", (D + 15) / 16);
  const bool bias = options.flag("bias", false);
  conv_bias_ = options.flag("conv_bias", true);
  const std::string norms = options.text("norms", "none", {"none", "plain", "weighted"});
  norms_ = norms == "none" ? Norms::kNone : norms == "plain" ? Norms::kPlain : Norms::kWeighted;
  norm_eps_ = static_cast<float>(options.number("norm_eps", config.norm_eps, 0, 1));

  const int64_t E = inner_;
  const double depth = 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, config.count)));
  in_proj_ = Linear("in_proj", D, 2 * E, bias, init_fan_in(D));
  x_proj_ = Linear("x_proj", E, dt_rank_ + 2 * state_, false, init_fan_in(E));
  dt_proj_ = Linear("dt_proj", dt_rank_, E, false, init_fan_in(dt_rank_));
  out_proj_ = Linear("out_proj", E, D, bias, init_fan_in(E, depth));
  const Initializer of_conv = init_fan_in(conv_width_);
  conv_weight_ = {.name = "conv1d.weight", .shape = {E, conv_width_}, .init = of_conv};
  conv_bias_parameter_ = {.name = "conv1d.bias", .shape = {E}, .init = of_conv};
  dt_bias_ = {.name = "dt_proj.bias", .shape = {E}, .init = init_step_bias()};
  A_log_ = {.name = "A_log", .shape = {E, state_}, .init = init_s4d_real(state_)};
  D_ = {.name = "D", .shape = {E}, .init = init_constant(1)};
  dt_norm_ = {.name = "dt_layernorm.weight", .shape = {dt_rank_}, .init = init_constant(1)};
  b_norm_ = {.name = "b_layernorm.weight", .shape = {state_}, .init = init_constant(1)};
  c_norm_ = {.name = "c_layernorm.weight", .shape = {state_}, .init = init_constant(1)};
}

Tensor Mamba1Mixer::normalize(Context& ctx, const Tensor& x, const Parameter& weight) const {
  if (norms_ == Norms::kNone) return x;
  return rms_norm(ctx, x, norms_ == Norms::kWeighted ? weight.value : Tensor{}, norm_eps_);
}

Tensor Mamba1Mixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                            const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const int64_t of_input[] = {inner_, inner_};
  const auto x_z = split_columns(ctx, in_proj_.forward(ctx, x), of_input);

  const ShortConvOptions conv{.silu = true};
  const Tensor conv_bias = conv_bias_ ? conv_bias_parameter_.value : Tensor{};
  const Tensor u = through_slot(
      state, 0,
      [&](const Tensor& initial) {
        return short_conv(ctx, x_z[0], conv_weight_.value, conv_bias, initial, batch, conv);
      },
      [&](std::span<float* const> tails) {
        return short_conv_in_place(ctx, x_z[0], conv_weight_.value, conv_bias, tails, batch, conv);
      });
  const int64_t of_selection[] = {dt_rank_, state_, state_};
  const auto r_B_C = split_columns(ctx, x_proj_.forward(ctx, u), of_selection);
  const SelectiveScanInputs inputs{
      .x = u,
      .dt_raw = dt_proj_.forward(ctx, normalize(ctx, r_B_C[0], dt_norm_)),
      .b = normalize(ctx, r_B_C[1], b_norm_),
      .c = normalize(ctx, r_B_C[2], c_norm_),
      .dt_bias = dt_bias_.value,
      .a_log = A_log_.value,
      .d = D_.value,
      .z = x_z[1]};
  const Tensor y = through_slot(
      state, 1, [&](const Tensor& initial) { return selective_scan(ctx, inputs, initial, batch); },
      [&](std::span<float* const> states) {
        return selective_scan_in_place(ctx, inputs, states, batch);
      });
  return out_proj_.forward(ctx, y);
}

StateSpec Mamba1Mixer::state_spec() const {
  return {{.name = "conv", .shape = {conv_width_ - 1, inner_}},
          {.name = "ssm", .shape = {state_, inner_}}};
}

std::vector<Parameter*> Mamba1Mixer::parameters() {
  std::vector<Parameter*> out;
  in_proj_.collect(out);
  out.push_back(&conv_weight_);
  if (conv_bias_) out.push_back(&conv_bias_parameter_);
  x_proj_.collect(out);
  if (norms_ == Norms::kWeighted) out.insert(out.end(), {&dt_norm_, &b_norm_, &c_norm_});
  dt_proj_.collect(out);
  out.insert(out.end(), {&dt_bias_, &A_log_, &D_});
  out_proj_.collect(out);
  return out;
}

double Mamba1Mixer::matmul_flops() const {
  return in_proj_.matmul_flops() + x_proj_.matmul_flops() + dt_proj_.matmul_flops() +
         out_proj_.matmul_flops();
}

}  // namespace braid
