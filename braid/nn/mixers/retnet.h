#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/linear_attention/linear_attention.h"

namespace braid {

/// Multi-scale retention (RetNet):
///
///   q = rot(x W_q^T),  k = rot(K^-1/2 x W_k^T),  v = x W_v^T,  per head
///   S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = q_t S_t / sqrt(1 + gamma_h + ... + gamma_h^t)
///   y = (silu(x W_g^T) * rms(o)) W_o^T,   gamma_h = 1 - 2^(-5 - h)
///
/// rot turns adjacent pairs by angles from 1 to 1/10000, both ends taken; rms is over each head,
/// without a weight. t is the absolute position. This is the authors' recurrent form; their
/// parallel form divides a token's row by one more number, which the norm takes out up to its eps.
///
/// Options: heads (H, width / 256, at least 1), value (H V, 2 width), eps (of the norm, 1e-6),
/// chunk (64). K is width / H. Parameters carry the names of microsoft/torchscale. State:
/// retention (H, V, K), float32, of constant size.
/// Source: Sun et al., arXiv:2307.08621; torchscale `MultiScaleRetention`.
class RetnetMixer final : public Sublayer {
 public:
  RetnetMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  Tensor row_scales(Context& ctx, const SequenceBatch& batch) const;

  LinearAttentionOptions retention_;
  RopeOptions rope_;
  float eps_ = 1e-6f;
  Tensor log_decay_;  // (H)
  Linear q_proj_, k_proj_, v_proj_, g_proj_, out_proj_;
};

}  // namespace braid
