#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/linear_attention/linear_attention.h"

namespace braid {

/// Lightning attention (TransNormerLLM): linear attention with a fixed decay per head and layer,
/// and no positions.
///
///   [q | k | v | u] = x W^T;   q, k <- silu(q), silu(k);   lrpe=1: q, k <- lrpe(q), lrpe(k)
///   S_t = exp(-s) S_{t-1} + k_t v_t^T,   o_t = q_t S_t
///   y = (u * rms(o)) W_o^T                        rms over the whole row, without a weight
///
///   s = a_h (1 - l / (L - 1) + 1e-5),   a_h the slopes of ALiBi: 2^(-8 (h + 1) / H)
///
/// l of L counts the lightning sublayers of the stack; a single one takes l = 0.
///
/// Options: heads (H, width / 128, at least 1), dim (of a head, width / heads), lrpe (0: learned
/// positions, which double the channels of keys), eps (of the norm, 1e-6), chunk (64); and for
/// relatives such as MiniMax-01's: slopes (alibi | geometric: 2^(-8 (h + 1) / H) for every H),
/// decay (the factor of the slopes, in the place of l's), value_silu (0), gate (none | sigmoid, of
/// u), norm_weight (0). Parameters carry the names of the authors' Hugging Face model: qkvu_proj,
/// out_proj, lrpe.theta (H, dim), norm.weight. State: kv (H, dim, dim or 2 dim), float32, of
/// constant size.
/// Sources: Qin et al., arXiv:2307.14995 and arXiv:2401.04658; TransNormerLLM
/// `NormLinearAttention`.
class LightningMixer final : public Sublayer {
 public:
  LightningMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  LinearAttentionOptions attention_;
  bool lrpe_ = false, value_silu_ = false, gate_sigmoid_ = false, has_norm_weight_ = false;
  float eps_ = 1e-6f;
  Tensor log_decay_;  // (H)
  Linear qkvu_proj_, out_proj_;
  Parameter theta_, norm_weight_;

  void read_decay(const SublayerConfig& config, SpecOptions& options);
  Tensor feature(Context& ctx, const Tensor& x, const SequenceBatch& batch) const;
};

/// a_h of H heads: a geometric row for a power of two; otherwise that of the power below, filled up
/// with every other one of the power above. Source: Press et al., arXiv:2108.12409.
std::vector<double> alibi_slopes(int64_t heads);

}  // namespace braid
