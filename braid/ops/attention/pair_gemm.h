#pragma once

#include <cstdint>

#include "braid/core/dtype.h"

namespace braid::cpu {

/// Strides in pairs (a, b) or elements (c).
struct PairGemmDims {
  int64_t m, n, pairs;
  int64_t a_row, b_row, c_row;
  bool accumulate;  // start from c instead of zero
};

/// c[i, j] <- start + sum_p (a[i, p].first b[p, j].first + a[i, p].second b[p, j].second), each
/// element one chain over p in float32, whatever m and n. Needs simd::has_bf16_dot().
void pair_gemm(const PairGemmDims& dims, const BF16* a, const BF16* b, float* c);

/// y[i, j] <- x[i, j] rounded, for (rows, count) with rows `stride` elements apart in both. Needs
/// simd::has_bf16_dot().
void round_rows(int64_t rows, int64_t count, int64_t stride, const float* x, BF16* y);

}  // namespace braid::cpu
