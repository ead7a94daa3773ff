#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/linformer/linformer.h"

namespace braid {

/// Linformer: attention to a fixed number of summaries of the sequence instead of to its tokens.
///
/// `linformer:L`, as published, for encoders of at most L tokens:
///
///   y = softmax(Q (E^T K)^T / sqrt(hd)) (F^T V) W_out^T + b,   E, F (L, rank); the first T rows
///
/// It is not causal and does not stream: training to predict the next token, sessions and states
/// are refused.
///
/// `linformer_causal`, our own: the sequence is cut into blocks on its own grid; a complete block
/// is compressed by E, F (block, rank) to `rank` keys and values, and a token attends to the tokens
/// of its own block up to itself, to those of the block before, and to the summaries of all earlier
/// blocks. Rotary positions turn queries and keys before the keys are compressed, so the score of a
/// summary is the mixture, by E, of the scores its tokens would have.
///
/// Options of both: heads (width / 64, at least 1), kv (= heads), rank (256; causal: 16), share (0;
/// E for F as well). linformer: length, first and required. linformer_causal: block (64, or a
/// divisor of it from 8 on), rope (default | none), theta.
/// Parameters carry the names of lucidrains/linformer. State, causal only: keys and values of the
/// last two blocks, and pages of summaries that grow by rank / block of what attention with
/// float32 keys and values keeps.
/// Source: Wang et al., arXiv:2006.04768; lucidrains/linformer `LinformerSelfAttention`.
class LinformerMixer final : public Sublayer {
 public:
  LinformerMixer(const SublayerConfig& config, SpecOptions& options, bool causal);

  Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                 const LayerState* state) const override;
  StateSpec state_spec() const override;
  std::vector<Parameter*> parameters() override;
  double matmul_flops() const override;

 private:
  bool causal() const { return options_.block > 0; }
  const Tensor& e() const { return proj_k_.value; }
  const Tensor& f() const { return share_ ? proj_k_.value : proj_v_.value; }
  Tensor attend(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                const SequenceBatch& batch, const LayerState* state) const;

  LinformerOptions options_;
  int64_t length_ = 0;  // rows of E and F
  int64_t kv_width_ = 0;
  bool share_ = false;
  RopeOptions rope_;
  Linear to_q_, to_k_, to_v_, to_out_;
  Parameter proj_k_, proj_v_;
};

}  // namespace braid
