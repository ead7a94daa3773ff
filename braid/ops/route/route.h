#pragma once

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/ops/route/options.h"

namespace braid {

struct Routing {
  Tensor experts;  // (N, k) i32 by falling choice, ties to the lower index; -1 where dropped
  Tensor weights;  // (N, k) f32, 0 where dropped; taped
  Tensor load;     // (E) i32: tokens that chose e, before any limit
};

/// The experts of each token and the weights of their outputs.
///
/// logits (N, E) f32, rows may be strided; selection_bias (E) f32 or absent is added to the scores
/// (`kSelected`: to the logits) for the choice alone (Wang et al., arXiv:2408.15664) and gets no
/// gradient. All arithmetic is float32; groups that are not kept are out of the choice whatever
/// their scores. Without a capacity a row of the result depends on its logits alone, bit for bit.
/// vjp: through the weights to the logits, with the gradients of the auxiliary losses; the choice
/// itself is a constant. A dropped slot passes no gradient on, but its score stays in the sum that
/// normalises the others.
/// Throws Error(kUsage) where k > E, groups do not divide E, too few experts are left by the kept
/// groups, the batch is not of N tokens, or a logit or a bias is not finite.
/// Source: Shazeer et al., arXiv:1701.06538; Fedus et al., arXiv:2101.03961; Jiang et al.,
/// arXiv:2401.04088; DeepSeek-AI, arXiv:2412.19437.
Routing route(Context& ctx, const Tensor& logits, const Tensor& selection_bias,
              const SequenceBatch& batch, const RouteOptions& options);

/// u (N) f32: 1 where the choice of `route` is close, else 0. Close is
///
///   c_(k) - c_(k+1) < margin,     c the biased scores among which a token's k experts are chosen
///
/// in falling order: what a token would choose next trails by less than `margin`. Of a choice
/// limited to groups only the kept groups count, and how close these were does not. A row depends
/// on its logits alone, bit for bit; 0 where a logit is not finite. Capacity and losses have no
/// say. A constant: nothing is taped. Throws as `route` does, and where the kept groups leave
/// nobody to choose next.
Tensor route_uncertain(Context& ctx, const Tensor& logits, const Tensor& selection_bias,
                       float margin, const RouteOptions& options);

}  // namespace braid
