#include "braid/nn/mixers/attention.h"

#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/view/view.h"

namespace braid {

AttentionMixer::AttentionMixer(const SublayerConfig& config, SpecOptions& options, bool windowed)
    : core_(config, options, {.width = config.width, .windowed = windowed}) {
  const int64_t D = config.width, q = core_.q_width();
  gated_ = options.flag("gate", false);
  qkv_proj_ = Linear("qkv_proj", D, core_.qkv_width() + (gated_ ? q : 0),
                     options.flag("bias", false), projection_init(D));
  o_proj_ = Linear("o_proj", q, D, options.flag("out_bias", false), residual_init(q, config.count));
  qk_norm_ = options.flag("qk_norm", false);
  q_norm_ = Norm("q_norm", core_.head_dim(), NormKind::kRms, config.norm_eps);
  k_norm_ = Norm("k_norm", core_.head_dim(), NormKind::kRms, config.norm_eps);
}

// Every head of x (N, heads hd) on its own.
Tensor AttentionMixer::norm_heads(Context& ctx, const Norm& norm, const Tensor& x) const {
  const int64_t hd = core_.head_dim();
  const Tensor heads = reshape(ctx, x, {x.rows(), x.dim(1) / hd, hd});
  return reshape(ctx, norm.forward(ctx, heads), x.shape());
}

Tensor AttentionMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  Tensor projected = qkv_proj_.forward(ctx, x), gate;
  if (gated_) {
    const int64_t widths[] = {core_.qkv_width(), core_.q_width()};
    const std::vector<Tensor> parts = split_columns(ctx, projected, widths);
    projected = parts[0];
    gate = activation(ctx, parts[1], Activation::kSigmoid);
  }
  std::vector<Tensor> qkv = core_.split(ctx, projected);
  if (qk_norm_) {
    qkv[0] = norm_heads(ctx, q_norm_, qkv[0]);
    qkv[1] = norm_heads(ctx, k_norm_, qkv[1]);
  }
  const Tensor y = core_.forward(ctx, qkv[0], qkv[1], qkv[2], stream, state);
  return o_proj_.forward(ctx, gated_ ? multiply(ctx, y, gate) : y);
}

std::vector<Parameter*> AttentionMixer::parameters() {
  std::vector<Parameter*> out;
  qkv_proj_.collect(out);
  o_proj_.collect(out);
  if (qk_norm_) {
    q_norm_.collect(out);
    k_norm_.collect(out);
  }
  return out;
}

double AttentionMixer::matmul_flops() const {
  return qkv_proj_.matmul_flops() + o_proj_.matmul_flops();
}

}  // namespace braid
