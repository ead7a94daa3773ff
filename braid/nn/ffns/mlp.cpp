#include "braid/nn/ffns/mlp.h"

#include "braid/nn/ffns/activate.h"

namespace braid {

MlpFfn::MlpFfn(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width, F = options.integer("hidden", 4 * D);
  act_ = activation_of(options.text("act", "relu2", {"relu2", "relu", "gelu", "silu"}));
  const bool bias = options.flag("bias", false);
  up_ = Linear("up", D, F, bias, projection_init(D));
  down_ = Linear("down", F, D, bias, residual_init(F, config.count));
}

Tensor MlpFfn::forward(Context& ctx, const Tensor& x, Stream&, const LayerState*) const {
  return down_.forward(ctx, activate(ctx, up_.forward(ctx, x), act_));
}

std::vector<Parameter*> MlpFfn::parameters() {
  std::vector<Parameter*> out;
  up_.collect(out);
  down_.collect(out);
  return out;
}

double MlpFfn::matmul_flops() const { return up_.matmul_flops() + down_.matmul_flops(); }

}  // namespace braid
