#pragma once

#include <cstdint>

#include "braid/core/dtype.h"

namespace braid::cpu {

/// Round to nearest, ties to even. Where simd::uses_bf16_dot() subnormals become zero, as they do
/// in the product itself.
void round_to_bf16(int64_t count, const float* x, BF16* y);
/// y[i] <- (even[i], odd[i])
void round_pairs_to_bf16(int64_t count, const float* even, const float* odd, BF16* y);

/// As simd::GemmDims for a tile of one panel: b is [pairs][32][2] bfloat16 and n <= 32. Where
/// simd::uses_bf16_dot() a holds pairs too (a_row and a_col count pairs, k counts pairs); elsewhere
/// a is float32 and k counts elements, even.
struct Bf16TileDims {
  int64_t m, n, k;
  int64_t a_row, a_col, c_row, start_row;
  const void* ahead;  // with each row of pairs the next 128 bytes of it are fetched to L2, as in
                      // simd::GemmDims
};
void bf16_tile(const Bf16TileDims& dims, const void* a, const void* b, const float* start,
               float* c);

}  // namespace braid::cpu
