#pragma once

#include "braid/nn/state.h"
#include "braid/ops/ttt/ttt.h"

namespace braid {

/// Test-time training over the last horizon / 2 to horizon tokens, in a state of fixed size and at
/// a constant cost a token. Two banks of fast weights read everything; each starts again from the
/// initial weights every `horizon` tokens, one of them at multiples of it and the other half a
/// horizon later, and a token's output is the older bank's (the first bank's while both began at
/// the start).
///
/// `horizon` is a multiple of twice the mini-batch, so that the banks share its grid. The state is
/// one slot (2, H, ttt_state_size) per sequence. Everything else is as in ops/ttt: it is that op
/// over a batch in which every life of a bank is a sequence.
Tensor ttt_banks(Context& ctx, const TttInputs& inputs, const LayerState* state, size_t slot,
                 const SequenceBatch& batch, const TttOptions& options, int64_t horizon);

}  // namespace braid
