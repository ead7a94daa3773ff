#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/latent_attention/latent_attention.h"

namespace braid {

/// Multi-head latent attention: keys and values of all heads are expanded from one latent a token,
/// and only the latent is kept.
///
///   q = W_q_b norm(W_q_a x), or W_q x;   each head [a (nope) | b (rope_dim)]
///   [c (kv_rank) | r (rope_dim)] = W_kv_a x;   c <- norm(c);   b, r <- rotated
///   each head: [k (nope) | v (value)] = W_kv_b c;   softmax(s (a . k + b . r)) v;   y = W_o [...]
///
/// s = (nope + rope_dim)^-0.5 m^2, where the rotary frequencies are stretched by `factor` and
/// mscale_all_dim is given: m = 0.1 mscale_all_dim ln(factor) + 1; cosine and sine carry
/// attention_factor, for yarn the quotient of the m of mscale and of mscale_all_dim.
///
/// Options: heads (width / 128, at least 1), q_rank (0: one matrix q_proj), kv_rank (512),
/// nope (128), rope_dim (64), value (128), eps (of both norms, 1e-6), bias (0: of q_a_proj,
/// kv_a_proj_with_mqa and o_proj), scale, and the rotary options of AttentionCore, interleaved (1).
/// Parameters carry the names of DeepSeek-V3. State: latent (kv_rank + rope_dim) a token in the
/// model's dtype, [c | r] with positions.
///
/// Two forms. `expanded` makes k and v of every head: 2 H (nope + rope_dim + value) operations for
/// each query and key, and a gradient. `absorbed` (ops/latent_attention) takes the queries to the
/// latents: 2 H (2 kv_rank + rope_dim), 3.4 times as many with the sizes above, and reads 576
/// numbers a token instead of H * 320. They round differently, so one of them must serve every cut
/// of a sequence, and a step cannot expand its whole past: with a state it is always the absorbed
/// one, and so it is without one, that the bits be the same. The expanded one serves training
/// (under a tape, or with weights that are trained) and Form::kParallel. What it costs: this whole
/// mixer at width 2048 with 16 heads (DeepSeek-V2-Lite) reads 256, 1024 or 4096 tokens in 1.3, 1.65
/// and 2.6 times the time of the expanded form (two cores, bfloat16 matrices, float32 latents).
/// Source: DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437.
class MlaMixer final : public Sublayer {
 public:
  MlaMixer(const SublayerConfig& config, SpecOptions& options);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  Tensor queries(Context& ctx, const Tensor& x, const RopeAngles& angles) const;
  /// c (N, kv_rank) and r (N, rope_dim), rotated.
  struct Latents {
    Tensor c, r;
  };
  Latents latents(Context& ctx, const Tensor& x, const RopeAngles& angles) const;
  Tensor expanded(Context& ctx, const Tensor& q, const Latents& at,
                  const SequenceBatch& batch) const;
  Tensor absorbed(Context& ctx, const Tensor& q, const Latents& at, const SequenceBatch& batch,
                  const LayerState* state) const;

  LatentAttentionOptions attention_;
  int64_t q_rank_ = 0, kv_rank_ = 0, rope_dim_ = 0;
  RopeOptions rope_;
  DType state_dtype_ = DType::kF32;
  Linear q_proj_, q_a_proj_, q_b_proj_, kv_a_proj_, o_proj_;
  Norm q_a_norm_, kv_a_norm_;
  Parameter kv_b_proj_;
};

}  // namespace braid
