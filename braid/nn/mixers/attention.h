#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/attention/attention.h"

namespace braid {

/// Causal softmax attention with grouped keys and values and rotary positions: `attn` over the
/// whole past, `swa:W` over the last W tokens (the token itself included).
///
/// Options: heads (width / 64, at least 1), kv (= heads), dim (width / heads), bias and out_bias
/// (0), scale (of the scores, dim^-0.5; a multiplier of the keys goes in here), and the rotary
/// ones: rope (default | none | linear | dynamic | yarn | llama3 | longrope), theta, partial,
/// interleaved, factor, original, low, high, beta_fast, beta_slow, attention_factor, short, long,
/// max. Parameters: qkv_proj ((H + 2 Hkv) hd, D) with the rows of q, then k, then v; o_proj (D, H
/// hd). State: k, v (Hkv hd) a token in the model's dtype; pages without end, or a ring of W.
class AttentionMixer final : public Sublayer {
 public:
  /// `windowed`: the first positional option is the window.
  AttentionMixer(const SublayerConfig& config, SpecOptions& options, bool windowed);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  AttentionOptions attention_;
  int64_t head_dim_ = 0;
  RopeOptions rope_;
  DType state_dtype_;
  Linear qkv_proj_, o_proj_;
};

}  // namespace braid
