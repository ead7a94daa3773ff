#pragma once

#include <cstdint>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// How logits become scores, and which experts' scores a weight is made of.
enum class RouteScore : uint8_t {
  kSoftmax,   // s = softmax over all E; the k best are chosen
  kSigmoid,   // s_e = sigmoid(logit_e), each expert on its own
  kSelected,  // the k best logits are chosen, s = softmax over those k
};
/// The score of a group of experts in a group-limited choice.
enum class GroupScore : uint8_t { kTop2, kMax };

struct RouteOptions {
  int64_t top_k = 1;
  RouteScore score = RouteScore::kSoftmax;
  bool normalise = false;  // weights / (their sum + 1e-20)
  float scale = 1;         // of the weights, last
  int64_t groups = 1;      // of E / groups consecutive experts; only the `kept_groups` best count
  int64_t kept_groups = 1;
  GroupScore group_score = GroupScore::kTop2;
  /// Tokens an expert takes: max(4, floor(N capacity / E)), first come first kept, all first slots
  /// before all second ones; 0: no limit. The only option under which a token's result depends on
  /// others.
  float capacity = 0;
  /// Coefficients of losses, each a mean over the N tokens as the cross-entropy they accompany,
  /// whose gradients the vjp adds to the logits' whatever comes in. (See route/README.md.)
  float balance_loss = 0, z_loss = 0, sequence_loss = 0;
};

struct Routing {
  Tensor experts;  // (N, k) i32 by falling choice, ties to the lower index; -1 where dropped
  Tensor weights;  // (N, k) f32, 0 where dropped; taped
  Tensor load;     // (E) i32: tokens that chose e, before any limit
};

/// The experts of each token and the weights of their outputs.
///
/// logits (N, E) f32; selection_bias (E) f32 or absent is added to the scores for the choice alone
/// (Wang et al., arXiv:2408.15664) and gets no gradient. All arithmetic is float32; groups that
/// are not kept are out of the choice whatever their scores.
/// vjp: through the weights to the logits; the choice itself is a constant.
/// Throws Error(kUsage) where k > E, groups do not divide E, too few experts are left by the kept
/// groups, or a logit is not finite.
/// Source: Shazeer et al., arXiv:1701.06538; Fedus et al., arXiv:2101.03961; Jiang et al.,
/// arXiv:2401.04088; DeepSeek-AI, arXiv:2412.19437.
Routing route(Context& ctx, const Tensor& logits, const Tensor& selection_bias,
              const SequenceBatch& batch, const RouteOptions& options);

}  // namespace braid
