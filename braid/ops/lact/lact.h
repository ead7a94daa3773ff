#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct LactOptions {
  int64_t heads = 0;      // H
  int64_t head_dim = 0;   // D
  int64_t hidden = 0;     // F
  int64_t chunk = 2048;   // C tokens to an update, from a sequence's start
  bool momentum = false;  // of updates
  bool muon = false;      // updates are orthogonalised
};

/// All float32. The rows of q, k and v may be strided, all else is dense.
struct LactInputs {
  Tensor q, k, v;     // (T, H D)
  Tensor lr;          // (T, 3 H): the learning rates of W0, then W1, then W2, H each
  Tensor momentum;    // (T, H), or absent without momentum
  Tensor w0, w1, w2;  // (H, D, F), (H, F, D), (H, D, F)
};

struct LactResult {
  Tensor y;            // (T, H D)
  Tensor final_state;  // (S, H, lact_state_size)
};

/// Floats of one head's state: fast weights W0 (D, F), W1 (F, D), W2 (D, F); the gradients of the
/// chunk in progress, of the same shapes; with momentum its three matrices and the sum of the
/// chunk's momenta so far. The phase is the sequence's position modulo C.
int64_t lact_state_size(const LactOptions& options);

/// Large-chunk test-time training: each head of each sequence trains a SwiGLU on the keys and
/// values it reads, one update a chunk, and applies it to the queries.
///
///   f(x) = (silu(x W0) * (x W2)) W1,    y_t = f(q_t) at the weights of the chunk's start
///   G_i  = sum over the chunk's tokens of -lr_i d/dW_i <f(k), -v>       (a gradient that is added)
///   M_i <- G_i + mean(momentum) M_i,   U_i = orthogonal(M_i) with muon, else M_i
///   W_i <- columns of W_i + U_i, each scaled to the norm it had in w_i
///
/// without momentum M_i = G_i. Columns are over the input dimension; a column's norm has 1e-5 added
/// where it divides. orthogonal(M) takes M / (|M| + 1e-7) through five Newton-Schulz steps
/// X <- a X + (b A + c A^2) X, A = X X^T over the shorter side, each with its own a, b, c: singular
/// values come near 1. The published code does that in bfloat16, this is float32.
///
/// Sequence s starts at batch.starts[s] from initial[s], or from w0, w1, w2 where it starts at 0 or
/// `initial` is absent; an empty one hands its state on. Nothing aliases. There is one form on the
/// absolute grid of chunks: a token's bits depend neither on the rest of the batch nor on where the
/// sequence is cut.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state (second order). It
/// keeps the state before every chunk of the sequence and head in work.
///
/// Source: Zhang et al., arXiv:2505.23884; a1600012888/LaCT `block_causal_lact_swiglu`, whose
/// weights these are transposed. Derivation of the vjp: README.md beside this file.
LactResult lact(Context& ctx, const LactInputs& inputs, const Tensor& initial,
                const SequenceBatch& batch, const LactOptions& options);

/// The same for inference: state[s] (H, lact_state_size) float32 is read (not where the sequence
/// starts at 0) and overwritten. Refuses a context with a tape.
Tensor lact_in_place(Context& ctx, const LactInputs& inputs, std::span<float* const> state,
                     const SequenceBatch& batch, const LactOptions& options);

}  // namespace braid
