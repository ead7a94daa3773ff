#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// S4D: a diagonal state space that does not vary in time, the ancestor that Mamba-1 adds selection
/// to. Each of the D channels has its own real diagonal system of N states:
///
///   h_t = exp(dt A) h_{t-1} + dt B x_t,   y_t = C h_t + D x_t,   dt = softplus(dt_bias)
///   out = a sigmoid(b) with [a | b] = gelu(y) W^T + bias
///
/// It runs on the scan of Mamba-1. A begins as -(n + 1) (S4D-Real), B as 1 and C normal; the step
/// multiplies B directly, as in Mamba, where S4D's zero-order hold has (exp(dt A) - 1) / A.
///
/// Options: state (N, 64), output (glu; linear: out = gelu(y) W^T + bias).
/// State: ssm (N, D) float32, of constant size.
/// Source: Gu et al., arXiv:2206.11893; the block around it as in state-spaces/s4 `S4D`.
class S4dMixer final : public Sublayer {
 public:
  S4dMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  int64_t width_ = 0, state_ = 64;
  bool glu_ = true;
  Parameter dt_bias_, A_log_, B_, C_, D_;
  Linear output_;
};

}  // namespace braid
