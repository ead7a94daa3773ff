#pragma once

#include <cstdint>

#include "braid/core/context.h"

namespace braid {

struct GatedRmsNormOptions {
  int64_t groups = 1;  // the mean of squares is taken over E / groups neighbours
  float eps = 1e-5f;
  bool norm_before_gate = false;
};

/// The norm of Mamba-2, y gated by z, per group of E / groups channels:
///
///   out = rms(y silu(z)) w                 (gate first, the default)
///   out = rms(y) w silu(z)                 (norm_before_gate)
///   rms(u) = u / sqrt(mean(u^2) + eps)
///
/// y, z (T, E) float32, rows may be strided; w (E), or (E / groups) shared by the groups, or absent
/// (ones). Nothing aliases. vjp: y, z, w.
///
/// Source: `RMSNormGated` of state-spaces/mamba.
Tensor gated_rms_norm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& w,
                      const GatedRmsNormOptions& options = {});

}  // namespace braid
