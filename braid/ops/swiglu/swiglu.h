#pragma once

#include "braid/core/context.h"

namespace braid {

/// The gate of a SwiGLU network, fused: y[i, j] = silu(g[i, j]) u[i, j] with silu(g) = g
/// sigmoid(g).
///
/// gate_up (N, 2F) float32: g is its first F columns, u its last F; rows may be strided. Returns a
/// new (N, F) tensor. vjp: d gate_up (N, 2F). Throws Error(kUsage) on other shapes.
/// Source: Shazeer, arXiv:2002.05202.
Tensor swiglu(Context& ctx, const Tensor& gate_up);

}  // namespace braid
