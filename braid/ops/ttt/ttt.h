#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct TttOptions {
  int64_t heads = 0;        // H
  int64_t head_dim = 0;     // D
  int64_t hidden = 0;       // F of the inner MLP; 0: the inner model is linear
  int64_t mini_batch = 16;  // K tokens, from a sequence's start
  int64_t steps = 1;        // n inner steps to a mini-batch
  bool norm = true;         // the inner LayerNorm
  bool residual = true;     // targets v - k and outputs q + ..., instead of v and ...
  float eps = 1e-6f;        // of the inner LayerNorm
};

/// All float32. The rows of q, k and v may be strided, all else is dense.
struct TttInputs {
  Tensor q, k, v;  // (T, H D)
  Tensor lr;       // (T, H): learning rate of a token's gradient, as key
  Tensor rate;     // (K): factor on the sum of gradients that a token reads, as query
  Tensor norm_weight, norm_bias;  // (H, D); absent without the norm
  Tensor w1, b1;                  // (H, D, F), (H, F); F is D for a linear model
  Tensor w2, b2;                  // (H, F, D), (H, D); absent for a linear model
};

struct TttResult {
  Tensor y;            // (T, H D)
  Tensor final_state;  // (S, H, ttt_state_size)
};

/// Floats of one head's state. In this order: the fast weights W1 (D, F), b1 (F) and for an MLP
/// W2 (F, D), b2 (D), as they stand at the start of the mini-batch in progress; then its gradients,
/// accumulated in factors: keys k (K, D), and for each inner step P1 (K, F) and for an MLP X2
/// (K, F), P2 (K, D). Row j belongs to the mini-batch's token j; rows not reached are zero. The
/// phase is the sequence's position modulo K.
int64_t ttt_state_size(const TttOptions& options);

/// Test-time training: each head of each sequence trains an inner model f on the keys and values it
/// reads, and applies it to the queries.
///
///   f(x) = x W1 + b1,  or  gelu(x W1 + b1) W2 + b2 with the tanh form of gelu
///   l_j(f) = |N(f(k_j)) - (v_j - k_j)|^2 / 2          N = LayerNorm with norm_weight, norm_bias
///   f_j^r = f_start - rate_j sum over s = 1..r and i <= j of lr_i grad l_i(f_i^(s-1)),   f_j^0 =
///   f_start           y_j = q_j + N(f_j^n(q_j))
///
/// where i, j run over the tokens of one mini-batch (multiples of K from the sequence's start), the
/// weights f_start are those that its predecessor's last token ended with, and j indexes `rate`
/// from the mini-batch's start. n = 1 is the published rule; with more steps a token's r-th
/// gradient is taken at the weights which that same token had after r - 1 steps, so that nothing
/// looks ahead.
///
/// Sequence s starts at batch.starts[s] from initial[s], or from w1, b1, w2, b2 where it starts at
/// 0 or `initial` is absent; an empty one hands its state on. Nothing aliases. One dual form on the
/// absolute grid of mini-batches serves all of form(): a token's bits depend neither on the rest of
/// the batch nor on where the sequence is cut.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state (second order, through
/// every inner step). It recomputes the forward pass from fast weights kept every few mini-batches.
///
/// Source: Sun et al., arXiv:2407.04620; test-time-training/ttt-lm-jax and ttt-lm-pytorch.
/// Derivation of the dual form and of the vjp: README.md beside this file.
TttResult ttt(Context& ctx, const TttInputs& inputs, const Tensor& initial,
              const SequenceBatch& batch, const TttOptions& options);

/// The same for inference: state[s] (H, ttt_state_size) float32 is read (not where the sequence
/// starts at 0) and overwritten. Refuses a context with a tape.
Tensor ttt_in_place(Context& ctx, const TttInputs& inputs, std::span<float* const> state,
                    const SequenceBatch& batch, const TttOptions& options);

}  // namespace braid
