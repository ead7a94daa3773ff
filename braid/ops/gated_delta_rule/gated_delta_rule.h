#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct GatedDeltaOptions {
  int64_t heads = 0;      // H, of values
  int64_t key_heads = 0;  // G; head h reads q and k of key head floor(h G / H)
  int64_t key_dim = 0;    // K
  int64_t value_dim = 0;  // V
  int64_t chunk = 64;     // tokens to a cell of the chunked form, from a sequence's start
};

/// All float32; the rows of q, k and v may be strided.
struct GatedDeltaInputs {
  Tensor q, k;       // (T, G K); keys of norm 1 keep the recurrence stable
  Tensor v;          // (T, H V)
  Tensor log_decay;  // (T, H), dense
  Tensor beta;       // (T, H), dense
};

struct GatedDeltaResult {
  Tensor y;            // (T, H V)
  Tensor final_state;  // (S, H, K, V)
};

/// The gated delta rule, per head:
///
///   S'_t = exp(log_decay_t) S_{t-1},   e_t = beta_t (v_t - S'_t^T k_t)         S (K, V)
///   S_t  = S'_t + k_t e_t^T,           y_t = S_t^T q_t
///
/// over a packed batch of T tokens in S sequences; sequence s starts from initial[s] (zero where
/// `initial` is absent) and may be empty. Nothing aliases. form() chooses recurrent or chunked
/// (kParallel is chunked); kAuto is recurrent forward, whose bits depend neither on the rest of the
/// batch nor on where the sequence is cut. The vjp is chunked in every form.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state.
///
/// Source: Yang et al., arXiv:2412.06464. Derivations of the chunked form and of the vjp: README.md
/// beside this file.
GatedDeltaResult gated_delta_rule(Context& ctx, const GatedDeltaInputs& inputs,
                                  const Tensor& initial, const SequenceBatch& batch,
                                  const GatedDeltaOptions& options);

/// The same for inference: state[s] (H, K, V) float32 is read and overwritten. Refuses a context
/// with a tape.
Tensor gated_delta_rule_in_place(Context& ctx, const GatedDeltaInputs& inputs,
                                 std::span<float* const> state, const SequenceBatch& batch,
                                 const GatedDeltaOptions& options);

}  // namespace braid
