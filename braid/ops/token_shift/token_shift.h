#pragma once

#include <span>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct TokenShiftResult {
  std::vector<Tensor> y;  // (T, D), one for each of mu
  Tensor final_state;     // (S, D)
};

/// Mixes every token with the one before it, differently for each of M <= 8 outputs:
///
///   y_m[t] = x[t] + mu_m (x[t - 1] - x[t])
///
/// x (T, D) float32, rows may be strided; mu[m] (D). Before a sequence's first row stands
/// initial[s] (S, D), zero where `initial` is absent; its last row (or initial[s], if it is empty)
/// is returned. Nothing aliases. A token's bits depend neither on the rest of the batch nor on
/// where the sequence is cut.
///
/// vjp: x, mu and `initial`, from the gradients of y and of final_state. Source: RWKV-LM,
/// `time_shift`.
TokenShiftResult token_shift(Context& ctx, const Tensor& x, std::span<const Tensor> mu,
                             const Tensor& initial, const SequenceBatch& batch);

/// The same for inference: state[s] (D) float32 is read and overwritten. Refuses a context with a
/// tape.
std::vector<Tensor> token_shift_in_place(Context& ctx, const Tensor& x, std::span<const Tensor> mu,
                                         std::span<float* const> state, const SequenceBatch& batch);

}  // namespace braid
