#pragma once

#include "braid/core/context.h"

namespace braid {

struct L2NormOptions {
  int64_t heads = 1;   // the norm is taken over D / heads neighbours
  float scale = 1.0f;  // the norm of the result
  float eps = 1e-6f;
};

/// y = scale x / sqrt(sum x^2 + eps) per head. x (T, D) float32, rows may be strided; returns a
/// new, dense tensor. vjp: dx. Source: flash-linear-attention `l2norm`, eps inside the root.
Tensor l2_norm(Context& ctx, const Tensor& x, const L2NormOptions& options = {});

}  // namespace braid
