#pragma once

#include "braid/core/context.h"

namespace braid {

/// The logarithm of the decay that a token asks for, as Mamba and what followed it parameterise it:
///
///   y[t, h] = -exp(a_log[h]) softplus(x[t, h] + bias[h])
///
/// x (T, H) float32, rows may be strided; a_log, bias (H). Returns a new, dense tensor. vjp: all
/// three; sums over tokens are in order, in float64. Source: Qwen3-Next's `g`, arXiv:2412.06464.
Tensor softplus_decay(Context& ctx, const Tensor& x, const Tensor& a_log, const Tensor& bias);

}  // namespace braid
