#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"

namespace braid {

struct CrossEntropyResult {
  Tensor loss;          // (1), on the tape: the mean over counted tokens; 0 where there are none
  Tensor token_losses;  // (N), in nats, not on the tape; 0 for ignored tokens
  Tensor correct;       // (N) int32: 1 where the target's logit is above every other, else 0
  int64_t counted = 0;
};

/// Softmax and negative log-likelihood, fused:
///
///   loss_i = log sum_v exp(logits[i, v]) - logits[i, targets[i]]
///
/// logits (N, V) float32, rows may be strided; targets (N) on the host, each below V; a negative
/// target is not counted. The maximum is subtracted first; the mean is added up in float64, in
/// order.
///
/// CONSUMES `logits` when it is recorded on a tape: the vjp writes d logits over them, so nothing
/// may read them after the backward pass has begun, and no other op may have kept them.
/// Throws Error(kUsage) on other shapes and on a target beyond V.
CrossEntropyResult softmax_cross_entropy(Context& ctx, const Tensor& logits,
                                         std::span<const int32_t> targets);

}  // namespace braid
