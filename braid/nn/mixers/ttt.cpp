#include "braid/nn/mixers/ttt.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/ttt_banks.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/short_conv/short_conv.h"

namespace braid {
namespace {

Parameter filled(std::string name, Shape shape, float value) {
  return {.name = std::move(name), .shape = shape, .init = init_constant(value)};
}

// The batch cut where mini-batches begin, so that positions restart there.
SequenceBatch mini_batches(const SequenceBatch& batch, int64_t mini_batch) {
  SequenceBatch out;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    int64_t phase = batch.starts[static_cast<size_t>(s)] % mini_batch;
    for (int64_t left = batch.length(s); left > 0; phase = 0) {
      const int64_t count = std::min(left, mini_batch - phase);
      out.add(count, phase);
      left -= count;
    }
  }
  return out;
}

Tensor conv_through(Context& ctx, const Tensor& x, const Parameter& weight, const Parameter& bias,
                    const LayerState* state, size_t slot, const SequenceBatch& batch) {
  return through_slot(
      state, slot,
      [&](const Tensor& initial) {
        return short_conv(ctx, x, weight.value, bias.value, initial, batch);
      },
      [&](std::span<float* const> tails) {
        return short_conv_in_place(ctx, x, weight.value, bias.value, tails, batch);
      });
}

}  // namespace

TttMixer::TttMixer(const SublayerConfig& config, SpecOptions& options, Kind kind) {
  const int64_t D = config.width;
  const bool mlp = kind != Kind::kLinear, correction = kind == Kind::kCorrection;
  if (correction) horizon_ = options.positional_integer_or("horizon", 8192);
  ttt_.heads = options.integer("heads", std::max<int64_t>(1, D / 64), 1, 8192);
  if (D % (2 * ttt_.heads) != 0) options.refuse("heads", "a divisor of half the width");
  ttt_.head_dim = D / ttt_.heads;
  if (mlp) ttt_.hidden = options.integer("hidden", (correction ? 1 : 4) * ttt_.head_dim, 1, 65536);
  ttt_.mini_batch = options.integer("mini_batch", correction ? 64 : 16, 1, 4096);
  if (!correction) horizon_ = options.integer("horizon", 0, 0);
  if (horizon_ % (2 * ttt_.mini_batch) != 0 || (correction && horizon_ == 0)) {
    options.refuse("horizon",
                   fmt::format("a multiple of two mini-batches, {}", 2 * ttt_.mini_batch));
  }
  ttt_.steps = options.integer("steps", 1, 1, 64);
  ttt_.norm = options.flag("norm", true);
  ttt_.residual = options.flag("inner_residual", true);
  lr_ = static_cast<float>(options.number("lr", mlp ? 0.1 : 1.0, 0.0));
  share_qk_ = options.flag("share_qk", true);
  gate_ = options.flag("gate", true);
  const double theta = options.number("theta", 10000.0, 0.0);
  rope_ = {.kind = theta > 0 ? RopeKind::kDefault : RopeKind::kNone,
           .theta = theta,
           .rotary_dim = ttt_.head_dim,
           .interleaved = true};
  const int64_t conv_width = share_qk_ ? options.integer("conv", 4, 2, 16) : 0;
  make_parameters(D, conv_width, static_cast<float>(options.number("init", 0.02)));
  std::vector<float> rate;
  for (int64_t i = 1; i <= ttt_.mini_batch; ++i) rate.push_back(1.0f / static_cast<float>(i));
  rate_ = host_tensor(std::move(rate), {ttt_.mini_batch});
}

void TttMixer::make_parameters(int64_t D, int64_t conv_width, float stddev) {
  const int64_t H = ttt_.heads, d = ttt_.head_dim;
  const int64_t F = ttt_.hidden > 0 ? ttt_.hidden : d;
  const auto linear = [&](const std::string& name, int64_t out, bool bias = false) {
    return Linear(name, D, out, bias, init_normal(stddev));
  };
  q_proj_ = linear("q_proj", D);
  k_proj_ = linear("k_proj", D);
  v_proj_ = linear("v_proj", D);
  o_proj_ = linear("o_proj", D);
  g_proj_ = linear("g_proj", D);
  lr_proj_ = linear("learnable_ttt_lr", H, true);
  if (share_qk_) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(conv_width));
    const auto conv = [&](std::string name, Shape shape) {
      return Parameter{
          .name = std::move(name), .shape = shape, .init = init_uniform(-bound, bound)};
    };
    conv_q_ = conv("conv_q.weight", {D, conv_width});
    conv_q_bias_ = conv("conv_q.bias", {D});
    conv_k_ = conv("conv_k.weight", {D, conv_width});
    conv_k_bias_ = conv("conv_k.bias", {D});
  }
  token_idx_ = filled("learnable_token_idx", {ttt_.mini_batch}, 0);
  norm_weight_ = filled("ttt_norm_weight", {H, d}, 1);
  norm_bias_ = filled("ttt_norm_bias", {H, d}, 0);
  w1_ = {.name = "W1", .shape = {H, d, F}, .init = init_normal(stddev)};
  b1_ = filled("b1", {H, F}, 0);
  w2_ = {.name = "W2", .shape = {H, F, d}, .init = init_normal(stddev)};
  b2_ = filled("b2", {H, d}, 0);
  post_norm_ = Norm("post_norm", D, NormKind::kLayer, 1e-6);
}

TttInputs TttMixer::inputs(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                           const LayerState* state) const {
  const RopeAngles angles = rope_angles(ctx, rope_, mini_batches(batch, ttt_.mini_batch));
  Tensor q = q_proj_.forward(ctx, x), k;
  if (share_qk_) {
    k = conv_through(ctx, q, conv_k_, conv_k_bias_, state, 1, batch);
    q = conv_through(ctx, q, conv_q_, conv_q_bias_, state, 0, batch);
  } else {
    k = k_proj_.forward(ctx, x);
  }
  const Tensor gate = activation(ctx, lr_proj_.forward(ctx, x), Activation::kSigmoid);
  const Tensor rate = add(ctx, ctx.to_device(rate_), token_idx_.value);
  return {.q = rope(ctx, q, ttt_.heads, angles),
          .k = rope(ctx, k, ttt_.heads, angles),
          .v = v_proj_.forward(ctx, x),
          .lr = scale(ctx, gate, lr_ / static_cast<float>(ttt_.head_dim)),
          .rate = activation(ctx, rate, Activation::kRelu),
          .norm_weight = norm_weight_.value,
          .norm_bias = norm_bias_.value,
          .w1 = w1_.value,
          .b1 = b1_.value,
          .w2 = w2_.value,
          .b2 = b2_.value};
}

Tensor TttMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                         const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const TttInputs in = inputs(ctx, x, batch, state);
  const size_t slot = share_qk_ ? 2 : 0;
  const Tensor o =
      horizon_ > 0 ? ttt_banks(ctx, in, state, slot, batch, ttt_, horizon_)
                   : through_slot(
                         state, slot,
                         [&](const Tensor& initial) { return ttt(ctx, in, initial, batch, ttt_); },
                         [&](std::span<float* const> states) {
                           return ttt_in_place(ctx, in, states, batch, ttt_);
                         });
  Tensor y = post_norm_.forward(ctx, o);
  if (gate_) y = multiply(ctx, gelu(ctx, g_proj_.forward(ctx, x), GeluForm::kTanh), y);
  return o_proj_.forward(ctx, y);
}

StateSpec TttMixer::state_spec() const {
  StateSpec slots;
  if (share_qk_) {
    const Shape tail{conv_q_.shape[1] - 1, conv_q_.shape[0]};
    slots = {{.name = "conv_q", .shape = tail}, {.name = "conv_k", .shape = tail}};
  }
  const int64_t size = ttt_state_size(ttt_);
  slots.push_back({.name = "fast",
                   .shape = horizon_ > 0 ? Shape{2, ttt_.heads, size} : Shape{ttt_.heads, size}});
  return slots;
}

std::vector<Parameter*> TttMixer::parameters() {
  std::vector<Parameter*> out;
  for (Linear* linear : {&q_proj_, &v_proj_, &o_proj_, &lr_proj_}) linear->collect(out);
  if (!share_qk_) k_proj_.collect(out);
  if (gate_) g_proj_.collect(out);
  if (share_qk_) out.insert(out.end(), {&conv_q_, &conv_q_bias_, &conv_k_, &conv_k_bias_});
  out.push_back(&token_idx_);
  if (ttt_.norm) out.insert(out.end(), {&norm_weight_, &norm_bias_});
  out.insert(out.end(), {&w1_, &b1_});
  if (ttt_.hidden > 0) out.insert(out.end(), {&w2_, &b2_});
  post_norm_.collect(out);
  return out;
}

double TttMixer::matmul_flops() const {
  double flops = 0;
  for (const Linear* linear : {&q_proj_, &v_proj_, &o_proj_, &lr_proj_}) {
    flops += linear->matmul_flops();
  }
  if (!share_qk_) flops += k_proj_.matmul_flops();
  if (gate_) flops += g_proj_.matmul_flops();
  return flops;
}

}  // namespace braid
