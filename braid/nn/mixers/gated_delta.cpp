#include "braid/nn/mixers/gated_delta.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/state_space_init.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/l2_norm/l2_norm.h"
#include "braid/ops/short_conv/short_conv.h"
#include "braid/ops/softplus_decay/softplus_decay.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

// exp(A_log) uniform in (0, 16).
void init_a_log(std::span<float> values, const Rng& rng) {
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(std::log(std::max(16.0 * rng.uniform(i), 1e-4)));
  }
}

}  // namespace

GatedDeltaMixer::GatedDeltaMixer(const SublayerConfig& config, SpecOptions& options)
    : eps_(static_cast<float>(config.norm_eps)) {
  const int64_t D = config.width;
  delta_.key_dim = options.integer("dim", 128, 1, 4096);
  delta_.value_dim = options.integer("value", delta_.key_dim, 1, 4096);
  delta_.key_heads =
      options.integer("key_heads", std::max<int64_t>(1, D / delta_.key_dim), 1, 4096);
  delta_.heads = options.integer("heads", 2 * delta_.key_heads, 1, 8192);
  if (delta_.heads % delta_.key_heads != 0) options.refuse("heads", "a multiple of key_heads");
  delta_.chunk = options.integer("chunk", 64, 1, 4096);
  conv_width_ = options.integer("conv", 4, 2, 16);
  const int64_t inner = delta_.heads * delta_.value_dim;
  const int64_t channels = 2 * delta_.key_heads * delta_.key_dim + inner;

  const auto linear = [](const std::string& name, int64_t in, int64_t out) {
    return Linear(name, in, out, false, xavier_uniform_init(in, out, std::exp2(-2.5)));
  };
  qkv_proj_ = linear("in_proj_qkv", D, channels);
  z_proj_ = linear("in_proj_z", D, inner);
  ba_proj_ = linear("in_proj_ba", D, 2 * delta_.heads);
  out_proj_ = linear("out_proj", inner, D);
  const float bound = 1.0f / std::sqrt(static_cast<float>(conv_width_));
  conv_weight_ = {.name = "conv1d.weight",
                  .shape = {channels, conv_width_},
                  .init = init_uniform(-bound, bound)};
  A_log_ = {.name = "A_log", .shape = {delta_.heads}, .init = init_a_log};
  dt_bias_ = {.name = "dt_bias", .shape = {delta_.heads}, .init = init_step_bias()};
  norm_weight_ = {.name = "norm.weight", .shape = {delta_.value_dim}, .init = init_constant(1)};
}

Tensor GatedDeltaMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                                const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const int64_t keys = delta_.key_heads * delta_.key_dim, inner = delta_.heads * delta_.value_dim;
  const Tensor projected = qkv_proj_.forward(ctx, x);
  const Tensor mixed = through_slot(
      state, 0,
      [&](const Tensor& initial) {
        return short_conv(ctx, projected, conv_weight_.value, {}, initial, batch, {.silu = true});
      },
      [&](std::span<float* const> tails) {
        return short_conv_in_place(ctx, projected, conv_weight_.value, {}, tails, batch,
                                   {.silu = true});
      });
  const int64_t of_conv[] = {keys, keys, inner}, of_ba[] = {delta_.heads, delta_.heads};
  const auto qkv = split_columns(ctx, mixed, of_conv);
  const auto ba = split_columns(ctx, ba_proj_.forward(ctx, x), of_ba);
  const float query_scale = 1.0f / std::sqrt(static_cast<float>(delta_.key_dim));
  const GatedDeltaInputs inputs{
      .q = l2_norm(ctx, qkv[0], {.heads = delta_.key_heads, .scale = query_scale}),
      .k = l2_norm(ctx, qkv[1], {.heads = delta_.key_heads}),
      .v = qkv[2],
      .log_decay = softplus_decay(ctx, ba[1], A_log_.value, dt_bias_.value),
      .beta = activation(ctx, ba[0], Activation::kSigmoid)};
  const Tensor o = through_slot(
      state, 1,
      [&](const Tensor& initial) { return gated_delta_rule(ctx, inputs, initial, batch, delta_); },
      [&](std::span<float* const> states) {
        return gated_delta_rule_in_place(ctx, inputs, states, batch, delta_);
      });
  return out_proj_.forward(
      ctx, gated_rms_norm(ctx, o, z_proj_.forward(ctx, x), norm_weight_.value,
                          {.groups = delta_.heads, .eps = eps_, .norm_before_gate = true}));
}

StateSpec GatedDeltaMixer::state_spec() const {
  const int64_t channels = 2 * delta_.key_heads * delta_.key_dim + delta_.heads * delta_.value_dim;
  return {{.name = "conv", .shape = {conv_width_ - 1, channels}},
          {.name = "delta", .shape = {delta_.heads, delta_.key_dim, delta_.value_dim}}};
}

std::vector<Parameter*> GatedDeltaMixer::parameters() {
  std::vector<Parameter*> out;
  for (Linear* linear : {&qkv_proj_, &z_proj_, &ba_proj_}) linear->collect(out);
  out.insert(out.end(), {&conv_weight_, &A_log_, &dt_bias_, &norm_weight_});
  out_proj_.collect(out);
  return out;
}

double GatedDeltaMixer::matmul_flops() const {
  double flops = 0;
  for (const Linear* linear : {&qkv_proj_, &z_proj_, &ba_proj_, &out_proj_}) {
    flops += linear->matmul_flops();
  }
  return flops;
}

}  // namespace braid
