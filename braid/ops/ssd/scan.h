#pragma once

#include <algorithm>
#include <cstdint>

#include "braid/ops/ssd/kernels.h"

namespace braid::cpu {

// Sizes of the scans' scratch, which the op allocates and the kernels lay out.
inline constexpr int64_t kBlockTokens = 16;
inline constexpr int64_t kAccumulators = 64;  // rows x tokens whose y is summed up together
inline constexpr int64_t kMaxLanes = 16;      // scratch is sized for the widest vectors
inline constexpr int64_t kRowBlock = 16;      // rows of a state are split among tasks by this
inline constexpr int64_t kHeadsPerTask = 4;   // that share a copy of B and C
inline constexpr int64_t kGrainWork = 32768;  // state elements x tokens worth a task

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline int64_t row_scratch(const SsdDims& dims) {
  const int64_t rows = round_up(dims.head_dim, kMaxLanes);
  const int64_t state = round_up(dims.state, kMaxLanes);
  return 2 * kBlockTokens * (state + rows) + kAccumulators * kMaxLanes +
         kHeadsPerTask * rows * state;
}

inline int64_t column_scratch(const SsdDims& dims) {
  const int64_t rows = round_up(dims.head_dim, kMaxLanes);
  const int64_t width = 2 * kMaxLanes;
  return kBlockTokens * 2 * (rows + width) + dims.heads_per_group() * rows * width;
}

// Arguments of the kernels, the same for all instruction sets.
struct RowScan {
  SsdDims dims;
  SsdScan scan;
  const float *u, *b, *c, *decay, *skip;
  float* y;
};

struct RowTask {
  int64_t s, h_begin, h_end, p0, p1;  // rows [p0, p1) of heads of one group
};

struct ColumnScan {
  SsdDims dims;
  SsdColumns scan;
  const float *k, *q, *b, *decay;
  float* z;
};

struct TokenGrads {
  SsdGradDims dims;
  const float *x, *y, *dy, *du, *dt, *dt_raw, *dt_bias, *a_log, *d, *tail;
  float *dx, *d_dt_raw;
  float *terms, *slopes, *sums;  // (T, H, 4), (T, H), (S, H, 3)
};

struct ChunkSums {
  SsdChunkDims dims;
  bool reverse;
  const float *x, *dt, *b, *log_decay;
  float *sums, *totals;
};

struct ChunkPass {
  SsdChunkDims dims;
  bool reverse;
  const float* totals;
  float* sums;
};

struct ChunkGroup {
  SsdChunkDims dims;
  const float *x, *dt, *b, *c, *log_decay, *skip, *starts;
  float* y;
};

struct ChunkGrads {
  const float* dy;
  int64_t dy_stride;
  const float* ends;
  float *du, *db, *dc;
};

}  // namespace braid::cpu
