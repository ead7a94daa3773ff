#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/ttt/ttt.h"

namespace braid {

/// Test-time training: the state is a model that trains on the sequence as it reads it. Per head of
/// d channels, with f(x) = x W1 + b1 (ttt_linear) or gelu(x W1 + b1) W2 + b2 (ttt_mlp):
///
///   c = x W_q^T,  q = rot(conv_q(c)),  k = rot(conv_k(c)),  v = x W_v^T          (share_qk)
///   lr_t = lr sigmoid(x_t . u_h + c_h) / d,   rate_i = max(0, 1 / (i + 1) + learnable_token_idx_i)
///   o = ttt(q, k, v, lr_t, rate)                                 mini-batches of K, see ops/ttt
///   y = (gelu(x W_g^T) LayerNorm(o)) W_o^T                       the gate and the LayerNorm over D
///
/// rot turns adjacent pairs by the position inside the mini-batch. Without share_qk q and k have
/// projections of their own and no convolution.
///
/// Options: heads (H, width / 64, at least 1), hidden (F of ttt_mlp, 4 d), mini_batch (K, 16),
/// steps (inner steps to a mini-batch, 1), lr (1; ttt_mlp 0.1), share_qk (1), conv (width, 4), gate
/// (1), norm (inner LayerNorm, 1), inner_residual (targets v - k and outputs q + N(f(q)), 1), theta
/// (10000; 0: nothing turns), init (deviation of the first matrices, 0.02). d is width / H.
///
/// Parameters carry the authors' names: {q,k,v,o,g}_proj, conv_q, conv_k (D, W) with biases,
/// learnable_ttt_lr.weight (H, D) and .bias (H), learnable_token_idx (K), ttt_norm_weight and _bias
/// (H, d), W1 (H, d, F), b1 (H, F), W2 (H, F, d), b2 (H, d), post_norm.
///
/// State: conv_q, conv_k (W - 1, D) and fast (H, ttt_state_size), float32, of constant size.
///
/// With horizon=N (0: no end) only the last N / 2 to N tokens are learned from, by two banks of
/// fast weights (ttt_banks.h); N is a multiple of 2 K, and the slot is fast (2, H, ttt_state_size).
/// `ttt:N` (8192) is the correction at the top of a stack: ttt_mlp with that horizon, hidden d and
/// mini-batches of 64, which cost little beside the stack.
///
/// Source: Sun et al., arXiv:2407.04620; test-time-training/ttt-lm-pytorch `TTTLinear`, `TTTMLP`,
/// whose defaults are share_qk 0 and gate 0 (its transformer backbone); these are of its Mamba
/// backbone, which has a short_conv sublayer in front as well.
class TttMixer final : public Sublayer {
 public:
  enum class Kind : uint8_t { kLinear, kMlp, kCorrection };
  TttMixer(const SublayerConfig& config, SpecOptions& options, Kind kind);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  void make_parameters(int64_t width, int64_t conv_width, float stddev);
  TttInputs inputs(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                   const LayerState* state) const;

  TttOptions ttt_;
  RopeOptions rope_;
  bool share_qk_ = true, gate_ = true;
  float lr_ = 1;
  int64_t horizon_ = 0;
  Tensor rate_;  // (K): 1 / (i + 1)
  Linear q_proj_, k_proj_, v_proj_, o_proj_, g_proj_, lr_proj_;
  Parameter conv_q_, conv_q_bias_, conv_k_, conv_k_bias_;
  Parameter token_idx_, norm_weight_, norm_bias_, w1_, b1_, w2_, b2_;
  Norm post_norm_;
};

}  // namespace braid
