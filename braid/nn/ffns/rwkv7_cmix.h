#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// RWKV-7 channel mixing, a feed-forward that sees the token before:
///
///   h = x_t + mu (x_{t-1} - x_t)
///   y = relu(h W_key^T)^2 W_value^T
///
/// Options: hidden (F, 4 D). Parameters carry the names of RWKV-LM: x_k (mu), key (F, D), value
/// (D, F). State: shift (D), float32. Source: Peng et al., arXiv:2503.14456; RWKV-LM `RWKV-v7`.
class Rwkv7CmixFfn final : public Sublayer {
 public:
  Rwkv7CmixFfn(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  int64_t width_;
  Parameter mu_;
  Linear key_, value_;
};

}  // namespace braid
