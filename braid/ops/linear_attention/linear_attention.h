#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct LinearAttentionOptions {
  int64_t heads = 0;      // H
  int64_t key_dim = 0;    // K
  int64_t value_dim = 0;  // V
  int64_t chunk = 64;     // tokens to a cell of the chunked form, from a sequence's start
};

/// All float32; the rows of q, k, v and of a log_decay per token may be strided.
struct LinearAttentionInputs {
  Tensor q, k;       // (T, H K)
  Tensor v;          // (T, H V)
  Tensor log_decay;  // (T, H) per token, (H) constant, or absent: no decay
};

struct LinearAttentionResult {
  Tensor y;            // (T, H V)
  Tensor final_state;  // (S, H, V, K)
};

/// Linear attention with a scalar decay per head, that is retention:
///
///   S_t = exp(log_decay_t) S_{t-1} + v_t k_t^T,   y_t = S_t q_t         S (V, K)
///
/// over a packed batch of T tokens in S sequences; sequence s starts from initial[s] (zero where
/// `initial` is absent) and may be empty. Nothing aliases. Forms, bits and cuts are those of `ssd`,
/// whose scan this is with x = v, B = k, C = q.
///
/// A normaliser z_t = exp(log_decay_t) z_{t-1} + k_t, n_t = z_t . q_t is this op with V = 1 and
/// v = 1; `divide_heads` divides by it.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state.
///
/// Sources: Katharopoulos et al., arXiv:2006.16236; Sun et al., arXiv:2307.08621 (constant decay);
/// Sun et al., arXiv:2405.05254 (decay per token).
LinearAttentionResult linear_attention(Context& ctx, const LinearAttentionInputs& inputs,
                                       const Tensor& initial, const SequenceBatch& batch,
                                       const LinearAttentionOptions& options);

/// The same for inference: state[s] (H, V, K) float32 is read and overwritten. Refuses a context
/// with a tape.
Tensor linear_attention_in_place(Context& ctx, const LinearAttentionInputs& inputs,
                                 std::span<float* const> state, const SequenceBatch& batch,
                                 const LinearAttentionOptions& options);

/// out[t, h] = y[t, h] / (n[t, h] + eps) over the V values of each head.
/// y (T, H V) and n (T, H) float32, rows may be strided; nothing aliases. vjp: y, n.
Tensor divide_heads(Context& ctx, const Tensor& y, const Tensor& n, float eps);

}  // namespace braid
