#pragma once

#include <cstdint>

#include "braid/core/tensor.h"

namespace braid {

/// The value of an 8-bit float with 4 bits of exponent (bias 7) and 3 of fraction: no infinities,
/// 0x7F and 0xFF are NaN, the largest is 448 (arXiv 2209.05433, "E4M3").
float fp8_e4m3_to_float(uint8_t code);

/// The rows and columns of a matrix that share a scale; the last blocks may be narrower.
struct ScaleBlock {
  int64_t rows = 0, columns = 0;

  /// How many scales a matrix has; 0 extents for no blocks.
  Shape scales_of(const Shape& matrix) const;
  friend bool operator==(const ScaleBlock&, const ScaleBlock&) = default;
};

/// y[i, j] <- codes[i, j] scales[i / rows, j / columns], the exact product rounded once to
/// bfloat16. codes (N, K) u8, scales of `block.scales_of`, f32; both on the host.
Tensor dequantise_fp8(const Tensor& codes, const Tensor& scales, const ScaleBlock& block);

}  // namespace braid
