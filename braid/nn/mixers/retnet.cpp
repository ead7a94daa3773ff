#include "braid/nn/mixers/retnet.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/linear_state.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"

namespace braid {
namespace {

double log_gamma(int64_t head) { return std::log1p(-std::exp2(-5.0 - static_cast<double>(head))); }

}  // namespace

RetnetMixer::RetnetMixer(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  const int64_t heads = options.integer("heads", std::max<int64_t>(1, D / 256), 1, 4096);
  if (D % (2 * heads) != 0) options.refuse("heads", "a divisor of half the width");
  const int64_t value = options.integer("value", 2 * D);
  if (value % heads != 0) options.refuse("value", "a multiple of heads");
  eps_ = static_cast<float>(options.number("eps", 1e-6));
  retention_ = {.heads = heads,
                .key_dim = D / heads,
                .value_dim = value / heads,
                .chunk = options.integer("chunk", 64, 1, 4096)};
  rope_ = {.kind = RopeKind::kLinspace, .rotary_dim = retention_.key_dim, .interleaved = true};
  std::vector<float> log_decay(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h) {
    log_decay[static_cast<size_t>(h)] = static_cast<float>(log_gamma(h));
  }
  log_decay_ = host_tensor(std::move(log_decay), {heads});
  const double gain = std::exp2(-2.5);
  q_proj_ = Linear("q_proj", D, D, false, xavier_uniform_init(D, D, gain));
  k_proj_ = Linear("k_proj", D, D, false, xavier_uniform_init(D, D, gain));
  v_proj_ = Linear("v_proj", D, value, false, xavier_uniform_init(D, value, gain));
  g_proj_ = Linear("g_proj", D, value, false, xavier_uniform_init(D, value, gain));
  out_proj_ = Linear("out_proj", value, D, false, xavier_uniform_init(value, D, 0.5));
}

// (N, H): the square root of 1 + gamma + ... + gamma^t at each token's position t.
Tensor RetnetMixer::row_scales(Context& ctx, const SequenceBatch& batch) const {
  std::vector<float> scales;
  scales.reserve(static_cast<size_t>(batch.tokens() * retention_.heads));
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t start = batch.starts[static_cast<size_t>(s)];
    for (int64_t t = start; t < start + batch.length(s); ++t) {
      for (int64_t h = 0; h < retention_.heads; ++h) {
        const double sum =
            std::expm1(static_cast<double>(t + 1) * log_gamma(h)) / std::expm1(log_gamma(h));
        scales.push_back(static_cast<float>(std::sqrt(sum)));
      }
    }
  }
  return ctx.to_device(host_tensor(std::move(scales), {batch.tokens(), retention_.heads}));
}

Tensor RetnetMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                            const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const RopeAngles& angles = stream.angles(ctx, rope_);
  const float key_scale = 1.0f / std::sqrt(static_cast<float>(retention_.key_dim));
  const LinearAttentionInputs inputs{
      .q = rope(ctx, q_proj_.forward(ctx, x), retention_.heads, angles),
      .k = rope(ctx, scale(ctx, k_proj_.forward(ctx, x), key_scale), retention_.heads, angles),
      .v = v_proj_.forward(ctx, x),
      .log_decay = ctx.to_device(log_decay_)};
  const Tensor o = linear_attention_through(ctx, inputs, state, 0, batch, retention_);
  const Tensor normed =
      gated_rms_norm(ctx, divide_heads(ctx, o, row_scales(ctx, batch), 0), g_proj_.forward(ctx, x),
                     {}, {.groups = retention_.heads, .eps = eps_, .norm_before_gate = true});
  return out_proj_.forward(ctx, normed);
}

StateSpec RetnetMixer::state_spec() const {
  return {
      {.name = "retention", .shape = {retention_.heads, retention_.value_dim, retention_.key_dim}}};
}

std::vector<Parameter*> RetnetMixer::parameters() {
  std::vector<Parameter*> out;
  for (Linear* linear : {&q_proj_, &k_proj_, &v_proj_, &g_proj_, &out_proj_}) linear->collect(out);
  return out;
}

double RetnetMixer::matmul_flops() const {
  double flops = 0;
  for (const Linear* linear : {&q_proj_, &k_proj_, &v_proj_, &g_proj_, &out_proj_}) {
    flops += linear->matmul_flops();
  }
  return flops;
}

}  // namespace braid
