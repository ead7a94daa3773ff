#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/gated_delta_rule/gated_delta_rule.h"

namespace braid {

/// Gated DeltaNet: a state that forgets, and corrects what it holds under a key.
///
///   [q | k | v] = silu(conv(x W_qkv^T));   z = x W_z^T;   [b | a] = x W_ba^T
///   q <- K^(-1/2) q / |q|,  k <- k / |k|  per key head;   beta = sigmoid(b)
///   log decay = -exp(A_log) softplus(a + dt_bias)
///   S' = exp(log decay) S,   S = S' + k (beta (v - S'^T k))^T,   o = S^T q         (per head)
///   y = (rms(o) w silu(z)) W_o^T                                    rms over each head, w shared
///
/// Options: key_heads (G, width / dim, at least 1), heads (H of values, 2 G), dim (K, 128), value
/// (V of a head, = dim), conv (width, 4), chunk (64). Head h reads key head floor(h G / H).
/// Parameters: in_proj_qkv (2 G K + H V, D) with the rows of q, then k, then v; in_proj_z,
/// in_proj_ba (2 H, D), conv1d.weight, A_log, dt_bias (H), norm.weight (V), out_proj.
/// State: conv (W - 1, 2 G K + H V) and delta (H, K, V), both float32, of constant size.
/// Source: Yang et al., arXiv:2412.06464; Hugging Face `Qwen3NextGatedDeltaNet`, whose projections
/// are interleaved per key head where these are not; initialised as NVlabs/GatedDeltaNet.
class GatedDeltaMixer final : public Sublayer {
 public:
  GatedDeltaMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  GatedDeltaOptions delta_;
  int64_t conv_width_ = 4;
  float eps_ = 1e-6f;
  Linear qkv_proj_, z_proj_, ba_proj_, out_proj_;
  Parameter conv_weight_, A_log_, dt_bias_, norm_weight_;
};

}  // namespace braid
