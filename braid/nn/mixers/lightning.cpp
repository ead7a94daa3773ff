#include "braid/nn/mixers/lightning.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "braid/nn/mixers/linear_state.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/lrpe/lrpe.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/view/view.h"

namespace braid {

std::vector<double> alibi_slopes(int64_t heads) {
  const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<double> slopes;
  for (int64_t h = 1; h <= below; ++h) {
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(below)));
  }
  for (int64_t h = 1; std::ssize(slopes) < heads; h += 2) {
    slopes.push_back(std::exp2(-4.0 * static_cast<double>(h) / static_cast<double>(below)));
  }
  return slopes;
}

void LightningMixer::read_decay(const SublayerConfig& config, SpecOptions& options) {
  const int64_t heads = attention_.heads;
  std::vector<double> slopes = alibi_slopes(heads);
  if (options.text("slopes", "alibi", {"alibi", "geometric"}) == "geometric") {
    for (size_t h = 0; h < slopes.size(); ++h) {
      slopes[h] = std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads));
    }
  }
  const double depth = static_cast<double>(config.ordinal) /
                       static_cast<double>(std::max<int64_t>(config.of_kind - 1, 1));
  const double factor = options.number("decay", 1.0 - depth + 1e-5);
  std::vector<float> log_decay;
  for (const double slope : slopes) log_decay.push_back(static_cast<float>(-slope * factor));
  log_decay_ = host_tensor(std::move(log_decay), {heads});
}

LightningMixer::LightningMixer(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  const int64_t heads = options.integer("heads", std::max<int64_t>(1, D / 128), 1, 4096);
  if (!options.has("dim") && D % heads != 0) {
    options.refuse("heads", "a divisor of the width, or dim as well");
  }
  const int64_t dim = options.integer("dim", D / heads, 1, 65536), inner = heads * dim;
  lrpe_ = options.flag("lrpe", false);
  attention_ = {.heads = heads,
                .key_dim = lrpe_ ? 2 * dim : dim,
                .value_dim = dim,
                .chunk = options.integer("chunk", 64, 1, 4096)};
  eps_ = static_cast<float>(options.number("eps", 1e-6));
  read_decay(config, options);
  value_silu_ = options.flag("value_silu", false);
  gate_sigmoid_ = options.text("gate", "none", {"none", "sigmoid"}) == "sigmoid";
  has_norm_weight_ = options.flag("norm_weight", false);
  qkvu_proj_ = Linear("qkvu_proj", D, 4 * inner, false, init_normal(0.02f));
  out_proj_ = Linear("out_proj", inner, D, false, init_normal(0.02f));
  theta_ = {
      .name = "lrpe.theta", .shape = {heads, dim}, .init = [](std::span<float> values, const Rng&) {
        const double count = static_cast<double>(values.size());
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / count));
        }
      }};
  norm_weight_ = {.name = "norm.weight", .shape = {inner}, .init = init_constant(1)};
}

Tensor LightningMixer::feature(Context& ctx, const Tensor& x, const SequenceBatch& batch) const {
  const Tensor y = activation(ctx, x, Activation::kSilu);
  return lrpe_ ? lrpe(ctx, y, theta_.value, batch) : y;
}

Tensor LightningMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const int64_t inner = attention_.heads * attention_.value_dim;
  const int64_t widths[] = {inner, inner, inner, inner};
  const auto qkvu = split_columns(ctx, qkvu_proj_.forward(ctx, x), widths);
  const LinearAttentionInputs inputs{
      .q = feature(ctx, qkvu[0], batch),
      .k = feature(ctx, qkvu[1], batch),
      .v = value_silu_ ? activation(ctx, qkvu[2], Activation::kSilu) : qkvu[2],
      .log_decay = ctx.to_device(log_decay_)};
  const Tensor o = linear_attention_through(ctx, inputs, state, 0, batch, attention_);
  const Tensor normed = rms_norm(ctx, o, has_norm_weight_ ? norm_weight_.value : Tensor{}, eps_);
  const Tensor u = gate_sigmoid_ ? activation(ctx, qkvu[3], Activation::kSigmoid) : qkvu[3];
  return out_proj_.forward(ctx, multiply(ctx, u, normed));
}

StateSpec LightningMixer::state_spec() const {
  return {{.name = "kv", .shape = {attention_.heads, attention_.value_dim, attention_.key_dim}}};
}

std::vector<Parameter*> LightningMixer::parameters() {
  std::vector<Parameter*> out;
  qkvu_proj_.collect(out);
  if (lrpe_) out.push_back(&theta_);
  if (has_norm_weight_) out.push_back(&norm_weight_);
  out_proj_.collect(out);
  return out;
}

double LightningMixer::matmul_flops() const {
  return qkvu_proj_.matmul_flops() + out_proj_.matmul_flops();
}

}  // namespace braid
