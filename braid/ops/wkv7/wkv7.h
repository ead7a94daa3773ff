#pragma once

#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// All (T, H P) float32, contiguous: head h owns columns [h P, (h + 1) P).
struct Wkv7Inputs {
  Tensor r;          // what the state is read with (a query)
  Tensor log_decay;  // ln w, in [-8, 0]
  Tensor k, v;       // the pair that is written
  Tensor a, b;       // the rank-one part of the transition: a reads, b writes back
};

struct Wkv7Result {
  Tensor y;            // (T, H P)
  Tensor final_state;  // (S, H, P, P), keys by values
};

/// The recurrence of RWKV-7, diagonal plus low rank, per head with a state S (P keys, P values):
///
///   S_t = diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T
///   y_t = r_t^T S_t
///
/// over a packed batch of T tokens in S sequences; sequence s starts from initial[s] (zero where
/// `initial` is absent) and may be empty. P is a multiple of 8 up to 128. Nothing aliases. form()
/// chooses recurrent or chunked (kParallel is chunked); kAuto is recurrent forward and chunked in
/// the vjp. In the recurrent form a token's bits depend neither on the rest of the batch nor on
/// where the sequence is cut.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state. What it keeps, beside
/// the inputs, is a state for every 16 tokens.
///
/// Source: Peng et al., arXiv:2503.14456, whose state is the transpose; RWKV-LM `RWKV-v7`.
/// Derivations of the chunked form and of the vjp: README.md beside this file.
Wkv7Result wkv7(Context& ctx, const Wkv7Inputs& inputs, const Tensor& initial, int64_t heads,
                const SequenceBatch& batch);

/// The same for inference: state[s] (H, P, P) float32 is read and overwritten. Refuses a context
/// with a tape.
Tensor wkv7_in_place(Context& ctx, const Wkv7Inputs& inputs, std::span<float* const> state,
                     int64_t heads, const SequenceBatch& batch);

}  // namespace braid
