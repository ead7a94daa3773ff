#pragma once

#include "braid/core/context.h"

namespace braid {

/// Normalises every row to mean 0 and variance 1:
///
///   y[i, j] = (x[i, j] - mean_i) rstd_i w[j] + b[j],   rstd_i = 1 / sqrt(var_i + eps)
///
/// with the biased variance, in two passes. x (N, D) float32, rows may be strided; w (D) float32;
/// b (D) or absent. Returns a new (N, D) tensor. vjp: dx, dw, db; the last two add rows in fixed
/// blocks, in order. Throws Error(kUsage) on other shapes. Source: Ba et al., arXiv:1607.06450.
Tensor layer_norm(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& b, float eps);

}  // namespace braid
