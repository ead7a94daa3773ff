#pragma once

#include "braid/ops/linear/bf16.h"

namespace braid::cpu {

/// `bf16_tile` for machines without the dot product of pairs: a is float32, weights are widened in
/// registers, an element is one chain of float32 multiply-adds over k.
void bf16_tile_widened(const Bf16TileDims& dims, const float* a, const BF16* b, const float* start,
                       float* c);

}  // namespace braid::cpu
