#pragma once

#include <cstdint>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// The recurrence under `ssd` and `linear_attention`, per head:
///
///   S_t = decay_t S_{t-1} + (scale_t u_t) b_t^T,   y_t = S_t c_t + skip u_t          S (P, N)
///
/// All float32; the rows of u, b and c may be strided. The caller has checked the shapes.
struct DecayedScan {
  Tensor u;                 // (T, H P)
  Tensor b, c;              // (T, G N); head h reads group floor(h G / H)
  Tensor scale;             // (T, H), or absent: 1
  Tensor log_decay, decay;  // (T, H), dense; decay = exp(log_decay)
  Tensor skip;              // (H), or absent: 0
  int64_t heads, head_dim, groups, state;
  int64_t chunk;  // tokens to a cell of the chunked form, counted from a sequence's start
};

/// One pointer per sequence into states (S, ...), or nulls where they are absent.
std::vector<float*> state_rows(const Tensor& states, int64_t sequences);

/// Left to itself, the forward pass is recurrent, in training too: it is not slower here, and its
/// bits do not depend on cuts. The vjp is chunked. README.md has the figures.
bool scan_forward_is_chunked(Form form);
bool scan_vjp_is_chunked(Form form);

/// y (T, H P). Sequence s starts from h0[s] (H, P, N), zero where null, and ends in ht[s], which
/// may be the same memory.
Tensor decayed_scan(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                    const std::vector<float*>& h0, const std::vector<float*>& ht);

/// Gradients of the scan's operands, without those of scale, decay and skip.
struct DecayedScanGrads {
  Tensor du;         // (T, H P), with respect to scale u, without the skip
  Tensor db, dc;     // (T, G N)
  Tensor d_initial;  // (S, H, P, N), where `initial` is defined
};

/// `initial` and `d_final` (S, H, P, N) may be absent: zero.
DecayedScanGrads decayed_scan_vjp(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                                  const Tensor& initial, const Tensor& dy, const Tensor& d_final,
                                  bool chunked);

/// tail (S, H) = <d_final, final_state> per head, where the gradient of the decays starts.
Tensor decayed_scan_tail(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                         const Tensor& final_state, const Tensor& d_final);

}  // namespace braid
