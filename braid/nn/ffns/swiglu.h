#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// The gated feed-forward of Llama and its kin.
///
///   y = (silu(m x W_gate^T) * (x W_up^T)) W_down^T
///
/// Options: hidden (F; 8/3 of the width, rounded up to 64), bias (0), gate_scale (m, 1).
/// Parameters: gate_up (2F, D) with the gate's rows first, down (D, F). Source: Shazeer,
/// arXiv:2002.05202.
class SwigluFfn final : public Sublayer {
 public:
  SwigluFfn(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  int64_t hidden_ = 0;
  float gate_scale_ = 1;
  Linear gate_up_, down_;
};

}  // namespace braid
