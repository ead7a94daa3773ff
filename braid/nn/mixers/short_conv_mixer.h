#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// A causal depthwise convolution as a sublayer of its own: y = conv(x), without an activation. In
/// front of test-time training it gives the Mamba backbone of that paper its local context.
///
/// Options: conv (width, 4), bias (1). Parameters: conv.weight (D, W), conv.bias (D). State: conv
/// (W - 1, D), float32.
/// Source: test-time-training/ttt-lm-pytorch `Conv`.
class ShortConvMixer final : public Sublayer {
 public:
  ShortConvMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;

 private:
  Parameter weight_, bias_;
  bool has_bias_ = true;
};

}  // namespace braid
