#pragma once

#include "braid/nn/state.h"
#include "braid/ops/linear_attention/linear_attention.h"

namespace braid {

/// linear_attention over fixed slot `slot` (H, V, K) of a mixer's state, which may be null.
inline Tensor linear_attention_through(Context& ctx, const LinearAttentionInputs& inputs,
                                       const LayerState* state, size_t slot,
                                       const SequenceBatch& batch,
                                       const LinearAttentionOptions& options) {
  return through_slot(
      state, slot,
      [&](const Tensor& initial) { return linear_attention(ctx, inputs, initial, batch, options); },
      [&](std::span<float* const> states) {
        return linear_attention_in_place(ctx, inputs, states, batch, options);
      });
}

}  // namespace braid
