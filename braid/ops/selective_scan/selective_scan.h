#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct SelectiveScanOptions {
  int64_t chunk = 256;  // tokens to a cell of the chunked form, counted from a sequence's start
};

/// All float32; the rows of x, dt_raw, b, c and z may be strided. E channels of N states each.
struct SelectiveScanInputs {
  Tensor x;        // (T, E)
  Tensor dt_raw;   // (T, E), or absent: the system does not vary in time
  Tensor b, c;     // (T, N), shared by the channels; (E, N) where dt_raw is absent
  Tensor dt_bias;  // (E)
  Tensor a_log;    // (E, N), A = -exp(a_log)
  Tensor d;        // (E), or absent
  Tensor z;        // (T, E), or absent: no gate
};

struct SelectiveScanResult {
  Tensor y;            // (T, E)
  Tensor final_state;  // (S, N, E)
};

/// The selective state space of Mamba-1 (S6), for channel e and state n:
///
///   dt_t[e]   = softplus(dt_raw_t[e] + dt_bias[e])
///   h_t[n, e] = exp(dt_t[e] A[e, n]) h_{t-1}[n, e] + dt_t[e] B_t[n] x_t[e]
///   y_t[e]    = (sum_n C_t[n] h_t[n, e] + D[e] x_t[e]) silu(z_t[e])
///
/// and, with a constant step dt = softplus(dt_bias) and with B[e, n] and C[e, n] of each channel's
/// own, its ancestor, the diagonal state space S4D with real A. Runs over a packed batch of T
/// tokens in S sequences; sequence s starts from initial[s] (N, E) (zero where `initial` is absent)
/// and may be empty. States have the channels last, so that a vector holds neighbouring channels.
/// Nothing aliases. form() chooses recurrent or chunked (kParallel is chunked); kAuto is recurrent.
/// In the recurrent form a token's bits depend neither on the rest of the batch nor on where the
/// sequence is cut.
///
/// vjp: all inputs and `initial`, from the gradients of y and of final_state. It keeps one state
/// for every kSelectiveScanMark tokens and computes those between again.
///
/// Source: Gu & Dao, arXiv:2312.00752, `selective_scan_fn` of state-spaces/mamba; Gu et al.,
/// arXiv:2206.11893. Derivations of the chunked form and of the vjp: README.md beside this file.
SelectiveScanResult selective_scan(Context& ctx, const SelectiveScanInputs& inputs,
                                   const Tensor& initial, const SequenceBatch& batch,
                                   const SelectiveScanOptions& options = {});

/// The same for inference: state[s] (N, E) float32 is read and overwritten, nothing of it is
/// copied. Refuses a context with a tape.
Tensor selective_scan_in_place(Context& ctx, const SelectiveScanInputs& inputs,
                               std::span<float* const> state, const SequenceBatch& batch,
                               const SelectiveScanOptions& options = {});

}  // namespace braid
