#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/scale_columns/scale_columns.h"
#include "braid/ops/ssd/ssd.h"

namespace braid {

/// Mamba-2: a selective state-space mixer (structured state-space duality).
///
///   [z | x | B | C | dt] = u W_in^T, each times its own of `scales`;   [x | B | C] <- silu(conv([x
///   | B | C])) S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   y_t = S_t C_t + D x_t out =
///   gated_rms_norm(y, z) W_out^T
///
/// Options: state (N, 128), head (P, 64), groups (G, 1), conv (width, 4), expand (2) or heads (H;
/// the inner width is H P), norm (1; 0: y silu(z) without a norm), norm_groups (= groups),
/// norm_before_gate (0), dt_min, dt_max (limits of dt after softplus: 0, inf), bias (0, of the
/// projections), out_bias (= bias), conv_bias (1), scales (1/1/1/1/1), chunk (64).
/// Parameters carry the names of state-spaces/mamba. State: conv (W - 1, H P + 2 G N) and
/// ssm (H, P, N), both float32, of constant size.
/// Source: Dao & Gu, arXiv:2405.21060; state-spaces/mamba `Mamba2`.
class Mamba2Mixer final : public Sublayer {
 public:
  Mamba2Mixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  /// y gated by z and normalised, as the options say.
  Tensor gate(Context& ctx, const Tensor& y, const Tensor& z) const;

  SsdOptions ssd_;
  int64_t conv_width_ = 4, norm_groups_ = 1;
  bool norm_ = true, norm_before_gate_ = false, conv_bias_ = true;
  float eps_ = 1e-5f;
  std::vector<ColumnScale> scales_;  // of z, x, B, C, dt; empty: none
  Linear in_proj_, out_proj_;
  Parameter conv_weight_, conv_bias_parameter_, dt_bias_, A_log_, D_, norm_weight_;
};

}  // namespace braid
