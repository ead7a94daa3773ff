#pragma once

#include "braid/core/context.h"

namespace braid {

/// Root mean square normalisation of every row:
///
///   y[i, j] = x[i, j] rstd_i w[j],   rstd_i = 1 / sqrt(mean_j x[i, j]^2 + eps)
///
/// x (N, D) float32, or (N, H, D) for N H rows (heads side by side); the first dimension may be
/// strided. w (D) float32, or absent (all ones). Returns a new tensor of x's shape. vjp: dx and dw;
/// dw adds rows in fixed blocks, in order. Throws Error(kUsage) on other shapes. Source: Zhang &
/// Sennrich, arXiv:1910.07467.
Tensor rms_norm(Context& ctx, const Tensor& x, const Tensor& w, float eps);

}  // namespace braid
