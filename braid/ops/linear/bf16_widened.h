#pragma once

#include "braid/ops/linear/bf16.h"

namespace braid::cpu {

/// `bf16_tile` where simd::uses_bf16_dot() is false: a is float32, weights are widened in
/// registers, an element is one chain of float32 multiply-adds over k.
void bf16_tile_widened(const Bf16TileDims& dims, const float* a, const BF16* b, const float* start,
                       float* c);

/// Round to nearest, ties to even, with subnormals; as `round_to_bf16` and `round_pairs_to_bf16`.
void round_to_bf16_widened(int64_t count, const float* x, BF16* y);
void round_pairs_to_bf16_widened(int64_t count, const float* even, const float* odd, BF16* y);

/// w (2 pairs, 32) float32 <- b as in Bf16TileDims: `simd::gemm` on it gives the bits of
/// `bf16_tile_widened`, and repays the copy where many rows meet the panel.
void widen_panel(int64_t pairs, const void* b, float* w);

}  // namespace braid::cpu
