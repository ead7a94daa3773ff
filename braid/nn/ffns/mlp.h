#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/experts/experts.h"

namespace braid {

/// The plain feed-forward: two projections with a function between them.
///
///   y = act(x W_up^T) W_down^T
///
/// Options: hidden (F, 4 D), act (relu2 | relu | gelu | silu; relu2 is max(x, 0)^2, gelu the exact
/// form), bias (0). Parameters: up (F, D), down (D, F). Sources: Vaswani et al., arXiv:1706.03762;
/// So et al., arXiv:2109.08668 (relu2, as in Nemotron-H).
class MlpFfn final : public Sublayer {
 public:
  MlpFfn(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  ExpertActivation act_ = ExpertActivation::kRelu2;
  Linear up_, down_;
};

}  // namespace braid
