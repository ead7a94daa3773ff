#pragma once

#include "braid/core/context.h"

namespace braid {

/// The rows of a (N, H P) float32, contiguous; the vectors (H P).
struct Wkv7Raw {
  Tensor decay;  // before the sigmoid
  Tensor k;
  Tensor rate;      // of learning in context, before the sigmoid
  Tensor k_k, k_a;  // vectors: what k is scaled by to be removed, and mixed by to be written
  /// All three or none: the values of this layer and of the first, and how much of the latter is
  /// taken, before the sigmoid.
  Tensor v, v_first, v_mix;
};

struct Wkv7Prepared {
  Tensor log_decay, k, a, b;  // (N, H P), as wkv7 takes them
  Tensor v;                   // undefined where no values were given
};

/// What stands between RWKV-7's projections and its recurrence, per head of P:
///
///   log_decay = -e^(-1/2) sigmoid(decay)              rate' = sigmoid(rate)
///   kappa = u / max(|u|, 1e-12),  u = k k_k           a = -kappa,  b = kappa rate'
///   k'    = k (1 + (rate' - 1) k_a)                   v' = v + (v_first - v) sigmoid(v_mix)
///
/// Nothing aliases. vjp: all inputs. Where |u| is below the bound, kappa is u 1e12.
/// Source: Peng et al., arXiv:2503.14456; RWKV-LM `RWKV-v7`.
Wkv7Prepared wkv7_inputs(Context& ctx, const Wkv7Raw& raw, int64_t heads);

}  // namespace braid
