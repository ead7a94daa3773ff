#pragma once

#include <memory>

#include "braid/nn/mixers/attention_core.h"
#include "braid/nn/modules.h"

namespace braid {

/// A transformer block that several places of a stack share, each with adapters, a cache and a
/// last projection of its own (Zamba2). It reads the residual stream h and the embedding e:
///
///   u = rms_norm([h | e]);   [q | k | v] = u W_qkv^T (+ u A^T B^T of this place)
///   a = rms_norm(attention(q, k, v) W_o^T)
///   [g | p] = a W_gate_up^T (+ a A^T B^T of this place);   y = (gelu(g) * p) W_down^T W_linear^T
///
/// h stays as it is: y is added to the input of the next sublayer, in front of that one's norm.
///
/// Options: share (an id; places with the same one, which must agree in all options, own one set of
/// block weights; without it the block is this place's own), those of AttentionCore (dim: twice the
/// width / heads; scale: (dim / 2)^-0.5), hidden (F, 4 D), rank of the feed-forward's adapter and
/// attn_rank of the attention's (0: none), bias (0, of the feed-forward).
/// Parameters of the block, under its first place: input_norm (2D), qkv_proj ((H + 2 Hkv) hd, 2D),
/// o_proj (D, H hd), ffn_norm (D), gate_up (2F, D), down (D, F). Of each place: qkv_adapter.in
/// (3r, 2D) with the rows of q, k, v; q_, k_, v_adapter.out (H hd or Hkv hd, r); ffn_adapter.in
/// (r, D), .out (2F, r); linear (D, D). State: k and v of each place.
/// Source: Glorioso et al., arXiv:2411.15242; Zyphra/Zamba2.
class SharedBlock final : public Sublayer {
 public:
  SharedBlock(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override { return core_.state_spec(); }
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  struct Weights {
    SublayerSpec spec;  // of the place that made them
    Norm input_norm, ffn_norm;
    Linear qkv_proj, o_proj, gate_up, down;
  };

  /// q, k, v with this place's adapters.
  std::vector<Tensor> project(Context& ctx, const Tensor& u) const;
  Tensor feed_forward(Context& ctx, const Tensor& a) const;

  AttentionCore core_;
  int64_t hidden_ = 0, rank_ = 0, attn_rank_ = 0;
  std::shared_ptr<Weights> block_;
  bool first_place_ = true;  // lists the block's parameters
  Linear qkv_adapter_in_, adapter_out_[3], ffn_adapter_in_, ffn_adapter_out_, linear_;
};

}  // namespace braid
