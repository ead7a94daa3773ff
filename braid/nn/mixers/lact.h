#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/lact/lact.h"

namespace braid {

/// Large-chunk test-time training (LaCT): per head of d channels a SwiGLU learns the keys and
/// values of a chunk of C tokens at once, and answers the queries of later chunks.
///
///   [q | k | v] = silu(x W_qkv^T);   q <- rot(q / |q|),  k <- rot(k / |k|)            (per head)
///   lr_i = softplus(x U_i^T + c_i) for the three matrices;   m = sigmoid(x U_m^T + c_m)
///   y = (rms(lact(q, k, v, lr, m)) w) W_o^T                     rms over each head, w shared
///
/// A token sees nothing of its own chunk, so a window belongs beside it: `swa:2048|lact`. There the
/// published layer shares one projection and adds the two in front of W_o; here each has its own,
/// and the scales and offsets that keep shared keys apart are not needed.
///
/// Options: heads (H, width / 192, at least 1), hidden (F, d), chunk (C, 2048), momentum (0), muon
/// (orthogonalised updates, 0), silu (1), lr (of an untrained layer, 0.001), theta (500000; 0:
/// nothing turns). d is width / H.
/// Parameters: qkv.weight (3 D, D), lr_proj.weight (3 H, D) and .bias (3 H), momentum_proj.weight
/// (H, D) and .bias, w0, w2 (H, d, F), w1 (H, F, d), ttt_norm.weight (d), o_proj.weight.
/// State: fast (H, lact_state_size), float32, of constant size.
/// Source: Zhang et al., arXiv:2505.23884; a1600012888/LaCT `LaCTSWIGLULayer`.
class LactMixer final : public Sublayer {
 public:
  LactMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  LactInputs inputs(Context& ctx, const Tensor& x, Stream& stream) const;

  LactOptions lact_;
  RopeOptions rope_;
  bool silu_ = true;
  Linear qkv_, momentum_proj_, o_proj_;
  Parameter lr_weight_, lr_bias_, w0_, w1_, w2_, norm_;
};

}  // namespace braid
