#include "braid/nn/modules.h"

#include <cmath>

#include "braid/ops/layer_norm/layer_norm.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/rms_norm/rms_norm.h"

namespace braid {

Linear::Linear(const std::string& name, int64_t in, int64_t out, bool bias, Initializer init)
    : weight_{.name = name + ".weight",
              .shape = {out, in},
              .matrix = true,
              .decay = true,
              .init = std::move(init)},
      bias_{.name = name + ".bias", .shape = {out}, .init = init_constant(0)},
      has_bias_(bias) {}

Tensor Linear::forward(Context& ctx, const Tensor& x) const {
  return linear(ctx, x, weight_.weight, has_bias_ ? bias_.value : Tensor{});
}

void Linear::collect(std::vector<Parameter*>& out) {
  out.push_back(&weight_);
  if (has_bias_) out.push_back(&bias_);
}

double Linear::matmul_flops() const { return 2.0 * static_cast<double>(weight_.shape.count()); }

Norm::Norm(const std::string& name, int64_t width, NormKind kind, double eps)
    : weight_{.name = name + ".weight", .shape = {width}, .init = init_constant(1)},
      bias_{.name = name + ".bias", .shape = {width}, .init = init_constant(0)},
      kind_(kind),
      eps_(static_cast<float>(eps)) {}

Tensor Norm::forward(Context& ctx, const Tensor& x) const {
  return kind_ == NormKind::kRms ? rms_norm(ctx, x, weight_.value, eps_)
                                 : layer_norm(ctx, x, weight_.value, bias_.value, eps_);
}

void Norm::collect(std::vector<Parameter*>& out) {
  out.push_back(&weight_);
  if (kind_ == NormKind::kLayer) out.push_back(&bias_);
}

Initializer projection_init(int64_t in) {
  return init_normal(1.0f / std::sqrt(static_cast<float>(in)));
}

Initializer residual_init(int64_t in, int64_t sublayers) {
  return init_normal(1.0f / std::sqrt(static_cast<float>(in * std::max<int64_t>(1, sublayers))));
}

Initializer xavier_uniform_init(int64_t in, int64_t out, double gain) {
  const auto bound = static_cast<float>(gain * std::sqrt(6.0 / static_cast<double>(in + out)));
  return init_uniform(-bound, bound);
}

}  // namespace braid
