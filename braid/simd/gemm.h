#pragma once

#include <cstdint>

namespace braid::simd {

/// Strides in elements. Rows of b, c and start are contiguous; a may have any pair of strides, so
/// a transposed a costs nothing (a transposed b does: see `transpose`).
struct GemmDims {
  int64_t m, n, k;
  int64_t a_row, a_col;   // a[i, p] lies at i * a_row + p * a_col
  int64_t b_row, c_row;   // b[p, j] at p * b_row + j; c[i, j] at i * c_row + j
  int64_t start_row = 0;  // 0 starts every row alike (a bias)
  /// Memory that will be wanted soon: with each row of b two cache lines of it are fetched to L2,
  /// `ahead_row` bytes further on. Only where a_row is 1. Need not be readable; null is none.
  const void* ahead = nullptr;
  int64_t ahead_row = 0;
};

/// c[i, j] <- start[i, j] + sum_p a[i, p] b[p, j], float32, on the calling thread: for use inside a
/// parallel loop. `start` may be null (zero) or c itself (accumulate); c must not alias a or b.
/// k may be 0.
///
/// Each element is one chain of fused multiply-adds over p = 0, 1, ..., from start[i, j], whatever
/// m, n, the strides and the vector width: a row's result does not depend on the other rows, and
/// splitting k by accumulating changes nothing.
void gemm(const GemmDims& dims, const float* a, const float* b, const float* start, float* c);

/// y[j, i] <- x[i, j] for x (rows, columns) with rows x_row apart; y's rows are y_row apart.
void transpose(int64_t rows, int64_t columns, const float* x, int64_t x_row, float* y,
               int64_t y_row);

}  // namespace braid::simd
