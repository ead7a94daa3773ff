#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/favor_features/favor_features.h"
#include "braid/ops/linear_attention/linear_attention.h"

namespace braid {

/// Causal linear attention with a feature map phi on queries and keys:
///
///   S_t = S_{t-1} + phi(k_t) v_t^T,   o_t = phi(q_t) S_t
///   normalise=1:  o_t / (phi(q_t) . z_t + eps),   z_t = z_{t-1} + phi(k_t)
///   normalise=0:  K^(-1/2) o_t
///   y = o W_o^T, or with norm=1 rms(o) * w per head, with gate=1 times silu(x W_g^T)
///
/// feature: elu1 (elu + 1), relu, identity, or favor: positive random features of the softmax
/// kernel (Performer), whose running maximum is a decay of S and z.
///
/// Options: heads (H, width / 64, at least 1), dim (K, width / H), value (V of a head, = dim),
/// feature (elu1), normalise (1 for elu1 and favor, else 0; refused for identity, whose sums have
/// any sign), eps (1e-10), norm (0 where normalised, else 1), gate (0; wants norm), features (M of
/// favor, K ln K), chunk (64).
/// Parameters: q_proj, k_proj, v_proj, o_proj, and g_proj, norm.weight (V), and of favor
/// projection (M, K), which is drawn once, orthogonal in blocks of K rows, kept in the checkpoint
/// and never trained. State, float32, of constant size: kv (H, V, K or M); z (H, 1, K or M) where
/// normalised; maximum (H) of favor, 0 for none yet.
/// Sources: Katharopoulos et al., arXiv:2006.16236; flash-linear-attention `LinearAttention`;
/// Choromanski et al., arXiv:2009.14794.
class LinearAttnMixer final : public Sublayer {
 public:
  LinearAttnMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  enum class Feature : uint8_t { kElu1, kRelu, kIdentity, kFavor };

  void read_feature(SpecOptions& options);
  Tensor map(Context& ctx, const Tensor& x) const;
  FavorKeys map_keys(Context& ctx, const Tensor& k, const SequenceBatch& batch,
                     const LayerState* state) const;
  Tensor output(Context& ctx, const Tensor& x, const Tensor& o) const;

  Feature feature_ = Feature::kElu1;
  FavorOptions favor_;
  LinearAttentionOptions attention_;  // key_dim is that of the features
  int64_t dim_ = 0;
  bool normalise_ = true, norm_ = false, gate_ = false;
  float eps_ = 1e-10f, norm_eps_ = 1e-5f;
  Linear q_proj_, k_proj_, v_proj_, g_proj_, o_proj_;
  Parameter norm_weight_, projection_;
};

}  // namespace braid
