#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Query rows of a segment at most.
inline constexpr int64_t kLinformerRows = 64;

/// One run to be compressed: x (rows, C), rows `stride` apart, to s (rank, C).
struct LinformerRun {
  const float* x;
  int64_t rows, stride;
  float* s;
};

struct LinformerSummaryDims {
  int64_t rank, channels, runs;
  int64_t e_rows;  // of e, and of its gradient
};

/// Summaries of one run, dense: k (rank, Hkv hd), v (rank, Hkv dv).
struct LinformerSummary {
  const float *k, *v;
};

/// Rows of one block; `k` is null where there are none.
struct LinformerRows {
  const float *k, *v;
  int64_t k_stride, v_stride;
};

/// Query rows that see the same summaries, the block before theirs, and of their own the rows up to
/// themselves. The first query is row `first` of its block, whose row 0 is at `own`.
struct LinformerSegment {
  int64_t row, length, first;
  LinformerRows own, before;
  int64_t summary, summaries;  // the first one in the table, and how many
};

struct LinformerDims {
  int64_t heads, kv_heads, head_dim, value_dim, rank, block;
  float scale;
  int64_t q_stride;
  int64_t summaries_max;  // of one segment

  int64_t group() const { return heads / kv_heads; }
  /// Columns of scores at most.
  int64_t columns_max() const { return summaries_max * rank + 2 * block; }
};

struct LinformerVjp {
  const float* dy;
  int64_t dy_stride;
  float *dq, *dk, *dv;  // (N, ...) dense; dk and dv are null where block is 0
  float *dsk, *dsv;     // (runs rank, ...)
};

namespace cpu {

void linformer_summaries(ThreadPool& threads, const LinformerSummaryDims& dims,
                         const LinformerRun* runs, const float* e);
/// dx: of run i to rows dx_rows[i] of dx (N, C) dense; de (e_rows, rank) through ds_turned
/// (runs, C, rank), which is scratch. ds (runs rank, C).
void linformer_summaries_vjp(ThreadPool& threads, const LinformerSummaryDims& dims,
                             const LinformerRun* runs, const int64_t* dx_rows, const float* e,
                             const float* ds, float* ds_turned, float* dx, float* de);

/// Scratch floats per worker, forward and vjp.
int64_t linformer_scratch(const LinformerDims& dims);
int64_t linformer_vjp_scratch(const LinformerDims& dims);

/// y (N, H dv)
void linformer_attention(ThreadPool& threads, const LinformerDims& dims, int64_t segments,
                         const LinformerSegment* segment, const LinformerSummary* summaries,
                         const float* q, float* y, float* scratch);

/// Sequence s has segments [offsets[s], offsets[s + 1]); gradients are zero before.
void linformer_attention_vjp(ThreadPool& threads, const LinformerDims& dims, int64_t sequences,
                             const int64_t* offsets, const LinformerSegment* segment,
                             const LinformerSummary* summaries, const float* q,
                             const LinformerVjp& vjp, float* scratch);

}  // namespace cpu
}  // namespace braid
