#pragma once

#include "braid/nn/mixers/attention_core.h"
#include "braid/nn/modules.h"

namespace braid {

/// Causal softmax attention with grouped keys and values and rotary positions: `attn` over the
/// whole past, `swa:W` over the last W tokens (the token itself included).
///
/// With `qk_norm` every head of q and of k is divided by its root mean square and multiplied by a
/// learned weight before it is turned (Qwen3).
///
/// Options: those of AttentionCore (heads: width / 64, at least 1; kv: = heads; dim: width / heads;
/// scale of the scores: dim^-0.5, where a multiplier of the keys goes in; rotary positions), bias,
/// out_bias (0), qk_norm (0), gate (0; 1: what the heads read, times sigmoid(x W_gate^T), goes into
/// o_proj).
/// Parameters: qkv_proj ((H + 2 Hkv) hd, D) with the rows of q, then k, then v, then (H hd) of the
/// gate; o_proj (D, H hd); with qk_norm q_norm and k_norm (hd). Source of the gate: Qiu et al.,
/// arXiv:2505.06708.
class AttentionMixer final : public Sublayer {
 public:
  /// `windowed`: the first positional option is the window.
  AttentionMixer(const SublayerConfig& config, SpecOptions& options, bool windowed);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override { return core_.state_spec(); }
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  Tensor norm_heads(Context& ctx, const Norm& norm, const Tensor& x) const;

  AttentionCore core_;
  bool gated_ = false;
  Linear qkv_proj_, o_proj_;
  bool qk_norm_ = false;
  Norm q_norm_, k_norm_;
};

}  // namespace braid
