#include "braid/nn/ffns/mlp.h"

#include "braid/ops/activation/activation.h"
#include "braid/ops/gelu/gelu.h"

namespace braid {
namespace {

template <Activation kind>
Tensor apply(Context& ctx, const Tensor& x) {
  return activation(ctx, x, kind);
}

Tensor apply_gelu(Context& ctx, const Tensor& x) { return gelu(ctx, x, GeluForm::kErf); }

}  // namespace

MlpFfn::MlpFfn(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width, F = options.integer("hidden", 4 * D);
  const std::string act = options.text("act", "relu2", {"relu2", "relu", "gelu", "silu"});
  act_ = act == "relu2"  ? apply<Activation::kReluSquared>
         : act == "relu" ? apply<Activation::kRelu>
         : act == "silu" ? apply<Activation::kSilu>
                         : apply_gelu;
  const bool bias = options.flag("bias", false);
  up_ = Linear("up", D, F, bias, projection_init(D));
  down_ = Linear("down", F, D, bias, residual_init(F, config.count));
}

Tensor MlpFfn::forward(Context& ctx, const Tensor& x, Stream&, const LayerState*) const {
  return down_.forward(ctx, act_(ctx, up_.forward(ctx, x)));
}

std::vector<Parameter*> MlpFfn::parameters() {
  std::vector<Parameter*> out;
  up_.collect(out);
  down_.collect(out);
  return out;
}

double MlpFfn::matmul_flops() const { return up_.matmul_flops() + down_.matmul_flops(); }

}  // namespace braid
