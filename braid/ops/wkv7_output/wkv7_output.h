#pragma once

#include "braid/core/context.h"

namespace braid {

/// The rows are (N, H P) float32, contiguous.
struct Wkv7OutputInputs {
  Tensor y;             // what the recurrence gave
  Tensor r, k, v;       // what it was given
  Tensor gate;          // (N, H P)
  Tensor r_k;           // (H, P)
  Tensor weight, bias;  // (H P)
};

/// What follows RWKV-7's recurrence, per head of P: a normalised reading, a bonus for the current
/// token, a gate.
///
///   out = (weight (y - mean) / sqrt(var + eps) + bias + (sum_p r_p k_p r_k_p) v) gate
///
/// with the biased variance over the head, in two passes. Nothing aliases. vjp: all inputs; those
/// of the vectors add rows in fixed blocks, in order. Source: Peng et al., arXiv:2503.14456;
/// RWKV-LM `RWKV-v7`.
Tensor wkv7_output(Context& ctx, const Wkv7OutputInputs& in, int64_t heads, float eps);

}  // namespace braid
