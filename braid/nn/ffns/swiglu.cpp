#include "braid/nn/ffns/swiglu.h"

#include "braid/ops/scale_columns/scale_columns.h"
#include "braid/ops/swiglu/swiglu.h"

namespace braid {

SwigluFfn::SwigluFfn(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  const int64_t F = options.integer("hidden", (8 * D / 3 + 63) / 64 * 64);
  hidden_ = F;
  gate_scale_ = static_cast<float>(options.number("gate_scale", 1, -1e6, 1e6));
  const bool bias = options.flag("bias", false);
  gate_up_ = Linear("gate_up", D, 2 * F, bias, projection_init(D));
  down_ = Linear("down", F, D, bias, residual_init(F, config.count));
}

Tensor SwigluFfn::forward(Context& ctx, const Tensor& x, Stream&, const LayerState*) const {
  Tensor gate_up = gate_up_.forward(ctx, x);  // (N, 2F)
  if (gate_scale_ != 1) {
    const ColumnScale scales[] = {{hidden_, gate_scale_}, {hidden_, 1}};
    gate_up = scale_columns(ctx, gate_up, scales);
  }
  return down_.forward(ctx, swiglu(ctx, gate_up));
}

std::vector<Parameter*> SwigluFfn::parameters() {
  std::vector<Parameter*> out;
  gate_up_.collect(out);
  down_.collect(out);
  return out;
}

double SwigluFfn::matmul_flops() const { return gate_up_.matmul_flops() + down_.matmul_flops(); }

}  // namespace braid
