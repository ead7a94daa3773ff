#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"

namespace braid {

/// Mamba-1: a selective state-space mixer (S6).
///
///   [x | z] = u W_in^T;   x <- silu(conv(x));   [r | B | C] = x W_x^T;   dt = softplus(r W_dt^T +
///   b) h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = (C_t h_t + D x_t) silu(z_t) out = y
///   W_out^T
///
/// Options: state (N, 16), conv (width, 4), expand (2) or inner (E), dt_rank (R, ceil(D / 16)),
/// bias (0), conv_bias (1), norms (none; plain: r, B and C are each divided by their root mean
/// square; weighted: with a learned weight), norm_eps (of these norms, the stack's).
/// Parameters carry the names of state-spaces/mamba, and those of Jamba for the weights of norms.
/// State: conv (W - 1, E) and ssm (N, E), both float32, of constant size.
/// Source: Gu & Dao, arXiv:2312.00752; state-spaces/mamba `Mamba`. Plain norms: Falcon Mamba,
/// arXiv:2410.05355; weighted: Jamba, arXiv:2403.19887.
class Mamba1Mixer final : public Sublayer {
 public:
  Mamba1Mixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  enum class Norms : uint8_t { kNone, kPlain, kWeighted };
  Tensor normalize(Context& ctx, const Tensor& x, const Parameter& weight) const;

  int64_t inner_ = 0, state_ = 16, conv_width_ = 4, dt_rank_ = 0;
  bool conv_bias_ = true;
  Norms norms_ = Norms::kNone;
  float norm_eps_ = 1e-5f;
  Linear in_proj_, x_proj_, dt_proj_, out_proj_;
  Parameter conv_weight_, conv_bias_parameter_, dt_bias_, A_log_, D_;
  Parameter dt_norm_, b_norm_, c_norm_;
};

}  // namespace braid
