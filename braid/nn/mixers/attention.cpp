#include "braid/nn/mixers/attention.h"

namespace braid {

AttentionMixer::AttentionMixer(const SublayerConfig& config, SpecOptions& options, bool windowed)
    : core_(config, options, {.width = config.width, .windowed = windowed}) {
  const int64_t D = config.width, q = core_.q_width();
  qkv_proj_ =
      Linear("qkv_proj", D, core_.qkv_width(), options.flag("bias", false), projection_init(D));
  o_proj_ = Linear("o_proj", q, D, options.flag("out_bias", false), residual_init(q, config.count));
}

Tensor AttentionMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  const std::vector<Tensor> qkv = core_.split(ctx, qkv_proj_.forward(ctx, x));
  return o_proj_.forward(ctx, core_.forward(ctx, qkv[0], qkv[1], qkv[2], stream, state));
}

std::vector<Parameter*> AttentionMixer::parameters() {
  std::vector<Parameter*> out;
  qkv_proj_.collect(out);
  o_proj_.collect(out);
  return out;
}

double AttentionMixer::matmul_flops() const {
  return qkv_proj_.matmul_flops() + o_proj_.matmul_flops();
}

}  // namespace braid
