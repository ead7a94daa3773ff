// Products of a run's rows with the weights of its positions, by the micro-kernels of simd/gemm.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/linformer/kernels.h"
#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

// Calls body(run, first column, columns) over blocks of columns of all runs.
template <class Body>
void for_each_column_block(ThreadPool& threads, const LinformerSummaryDims& dims, Body&& body) {
  constexpr int64_t kColumns = 128;
  const int64_t blocks = (dims.channels + kColumns - 1) / kColumns;
  threads.parallel_for(dims.runs * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % blocks * kColumns;
      body(i / blocks, c, std::min(kColumns, dims.channels - c));
    }
  });
}

}  // namespace

void linformer_summaries(ThreadPool& threads, const LinformerSummaryDims& dims,
                         const LinformerRun* runs, const float* e) {
  for_each_column_block(threads, dims, [&](int64_t i, int64_t c, int64_t columns) {
    simd::gemm({.m = dims.rank,
                .n = columns,
                .k = runs[i].rows,
                .a_row = 1,
                .a_col = dims.rank,
                .b_row = runs[i].stride,
                .c_row = dims.channels},
               e, runs[i].x + c, nullptr, runs[i].s + c);
  });
}

void linformer_summaries_vjp(ThreadPool& threads, const LinformerSummaryDims& dims,
                             const LinformerRun* runs, const int64_t* dx_rows, const float* e,
                             const float* ds, float* ds_turned, float* dx, float* de) {
  const int64_t C = dims.channels, rank = dims.rank;
  for_each_column_block(threads, dims, [&](int64_t i, int64_t c, int64_t columns) {
    const float* from = ds + i * rank * C + c;
    simd::gemm({.m = runs[i].rows,
                .n = columns,
                .k = rank,
                .a_row = rank,
                .a_col = 1,
                .b_row = C,
                .c_row = C},
               e, from, nullptr, dx + dx_rows[i] * C + c);
    simd::transpose(rank, columns, from, C, ds_turned + (i * C + c) * rank, rank);
  });
  constexpr int64_t kRows = 14;
  threads.parallel_for((dims.e_rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * kRows; r < std::min(end * kRows, dims.e_rows); r += kRows) {
      const int64_t count = std::min(kRows, dims.e_rows - r);
      std::fill_n(de + r * rank, count * rank, 0.0f);
      for (int64_t i = 0; i < dims.runs; ++i) {
        simd::gemm({.m = std::clamp<int64_t>(runs[i].rows - r, 0, count),
                    .n = rank,
                    .k = C,
                    .a_row = runs[i].stride,
                    .a_col = 1,
                    .b_row = rank,
                    .c_row = rank,
                    .start_row = rank},
                   runs[i].x + r * runs[i].stride, ds_turned + i * rank * C, de + r * rank,
                   de + r * rank);
      }
    }
  });
}

}  // namespace braid::cpu
