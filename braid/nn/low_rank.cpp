#include "braid/nn/low_rank.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/init.h"
#include "braid/ops/linear/linear.h"

namespace braid {

LowRank::LowRank(const std::string& name, const Sizes& sizes, std::optional<Activation> activation,
                 Initializer bias)
    : down_{.name = name + "1.weight",
            .shape = {sizes.rank, sizes.in},
            .matrix = true,
            .init = init_constant(0)},
      up_{.name = name + "2.weight", .shape = {sizes.out, sizes.rank}, .matrix = true, .init = {}},
      bias_{.name = name + "0", .shape = {sizes.out}, .init = bias},
      activation_(activation),
      has_bias_(bias != nullptr) {
  const double wide = static_cast<double>(sizes.rank) / static_cast<double>(sizes.out);
  up_.init = init_orthogonal(sizes.out, sizes.rank, 0.1 * std::sqrt(std::max(1.0, wide)));
}

Tensor LowRank::forward(Context& ctx, const Tensor& x) const {
  Tensor h = linear(ctx, x, down_.weight);
  if (activation_) h = activation(ctx, h, *activation_);
  return linear(ctx, h, up_.weight, has_bias_ ? bias_.value : Tensor{});
}

void LowRank::collect(std::vector<Parameter*>& out) {
  if (has_bias_) out.push_back(&bias_);
  out.insert(out.end(), {&down_, &up_});
}

double LowRank::matmul_flops() const {
  return 2.0 * static_cast<double>(down_.shape.count() + up_.shape.count());
}

}  // namespace braid
