#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"

namespace braid {

/// `width` neighbouring columns and what they are multiplied by.
struct ColumnScale {
  int64_t width = 0;
  float factor = 1;
};

inline constexpr int64_t kMaxColumnScales = 8;

/// y[i, j] = factor of j's segment * x[i, j]: the parts of one projection, each with its own
/// multiplier.
///
/// x (N, D) float32, rows may be strided; the widths of at most kMaxColumnScales segments add up to
/// D. Returns a new (N, D) tensor. vjp: the same of dy. Throws Error(kUsage) on other shapes.
Tensor scale_columns(Context& ctx, const Tensor& x, std::span<const ColumnScale> segments);

}  // namespace braid
