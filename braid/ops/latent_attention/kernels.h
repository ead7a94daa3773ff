#pragma once

#include <cstdint>

#include "braid/ops/linear/kernels.h"

namespace braid {

/// One product a head with its own part of a packed matrix b: outputs [row + h row_step, +n) over
/// inputs [column + h column_step, +k), which are even where b is bfloat16.
struct HeadProductDims {
  int64_t rows, heads, n, k;
  PackedMatrix b;
  int64_t row, row_step, column, column_step;
  int64_t a_row, a_head;  // a[i, h, p] lies at i * a_row + h * a_head + p
  int64_t c_row, c_head;  // likewise
  int64_t tail;           // elements of a behind the k that are copied behind the n of c
};

namespace cpu {

/// Scratch floats per worker.
int64_t head_products_scratch(const HeadProductDims& dims);

/// c[i, h, j] <- sum_p a[i, h, p] b[row(h) + j, column(h) + p], each element one chain over p
/// (over pairs for bfloat16) from zero, whatever the rows and threads.
void head_products(ThreadPool& threads, const HeadProductDims& dims, const float* a, const void* b,
                   float* c, float* scratch);

}  // namespace cpu
}  // namespace braid
