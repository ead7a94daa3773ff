#include "braid/nn/ffns/swiglu.h"

#include "braid/ops/swiglu/swiglu.h"

namespace braid {

SwigluFfn::SwigluFfn(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  const int64_t F = options.integer("hidden", (8 * D / 3 + 63) / 64 * 64);
  const bool bias = options.flag("bias", false);
  gate_up_ = Linear("gate_up", D, 2 * F, bias, projection_init(D));
  down_ = Linear("down", F, D, bias, residual_init(F, config.count));
}

Tensor SwigluFfn::forward(Context& ctx, const Tensor& x, Stream&, const LayerState*) const {
  return down_.forward(ctx, swiglu(ctx, gate_up_.forward(ctx, x)));
}

std::vector<Parameter*> SwigluFfn::parameters() {
  std::vector<Parameter*> out;
  gate_up_.collect(out);
  down_.collect(out);
  return out;
}

double SwigluFfn::matmul_flops() const { return gate_up_.matmul_flops() + down_.matmul_flops(); }

}  // namespace braid
