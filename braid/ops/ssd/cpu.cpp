// The recurrent form. A tile of state rows stays in registers over a block of tokens; B, C and the
// scaled inputs of the block lie in worker scratch, zero-padded to whole vectors.
//
// Bound: 3 multiply-adds per state element and token (S *= decay, S += u b, y += S c). For one
// token at a time, the state's 8 bytes (read and write) per element.

#include <algorithm>
#include <array>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/ssd/kernels.h"
#include "braid/ops/ssd/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ssd/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/scan-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// One block of tokens of some rows of one head, in scratch.
struct RowBlock {
  int64_t count, state, state_padded, rows_padded;
  int64_t group;       // rows whose y is summed up together
  const float* b;      // (count, state_padded)
  const float* c;      // (count, state_padded)
  const float* u;      // (count, rows_padded)
  const float* decay;  // (count)
};

// Rows [row, row + kRows) and columns [column, column + kVectors lanes) of the state through the
// block. acc (count, group): vectors of partial sums of y, chained from column to column.
template <int kRows, int kVectors>
HWY_INLINE void row_tile(const RowBlock& k, int64_t row, int64_t column, const float* from,
                         float* to, float* acc) {
  const D d;
  V s[kRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = column + v * lanes();
      s[r][v] = from == nullptr ? hn::Zero(d) : load(from + (row + r) * k.state + at, k.state - at);
    }
  }
  for (int64_t t = 0; t < k.count; ++t) {
    const V decay = hn::Set(d, k.decay[t]);
    const float* b = k.b + t * k.state_padded + column;
    const float* c = k.c + t * k.state_padded + column;
    V u[kRows], y[kRows];
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      u[r] = hn::Set(d, k.u[t * k.rows_padded + row + r]);
      y[r] = column == 0 ? hn::Zero(d) : hn::Load(d, acc + (t * k.group + r) * lanes());
    }
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      const V bv = hn::Load(d, b + v * lanes()), cv = hn::Load(d, c + v * lanes());
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        s[r][v] = hn::MulAdd(u[r], bv, hn::Mul(decay, s[r][v]));
        y[r] = hn::MulAdd(s[r][v], cv, y[r]);
      }
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) hn::Store(y[r], d, acc + (t * k.group + r) * lanes());
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = column + v * lanes();
      store(s[r][v], to + (row + r) * k.state + at, k.state - at);
    }
  }
}

template <int kRows, int kVectors>
HWY_NOINLINE void row_tiles(const RowBlock& k, int64_t row, int64_t rows, int64_t column,
                            const float* from, float* to, float* acc) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    row_tile<kRows, kVectors>(k, row + r, column, from, to, acc + r * lanes());
  }
  for (; r < rows; ++r) {
    row_tile<1, kVectors>(k, row + r, column, from, to, acc + r * lanes());
  }
}

// `rows` rows from `row` on through all columns; y (count, y_stride) from column `row` on.
void scan_row_group(const RowBlock& k, int64_t row, int64_t rows, const float* from, float* to,
                    float* acc, float* y, int64_t y_stride) {
  const D d;
  const int64_t n = lanes();
  int64_t column = 0;
  while (column < k.state_padded) {
    const int64_t left = (k.state_padded - column) / n;
    if (kManyRegisters && left >= 8) {
      row_tiles<2, 8>(k, row, rows, column, from, to, acc);
      column += 8 * n;
    } else if (left >= 4) {
      row_tiles<kManyRegisters ? 4 : 2, 4>(k, row, rows, column, from, to, acc);
      column += 4 * n;
    } else if (left >= 2) {
      row_tiles<kManyRegisters ? 4 : 2, 2>(k, row, rows, column, from, to, acc);
      column += 2 * n;
    } else {
      row_tiles<4, 1>(k, row, rows, column, from, to, acc);
      column += n;
    }
  }
  for (int64_t t = 0; t < k.count; ++t) {
    for (int64_t r = 0; r < rows; r += 4) {
      const float* four = acc + (t * k.group + r) * n;
      sum_lanes_of_four(hn::Load(d, four), hn::Load(d, four + n), hn::Load(d, four + 2 * n),
                        hn::Load(d, four + 3 * n), y + t * y_stride + row + r);
    }
  }
}

// One worker's scratch; see row_scratch.
struct RowScratch {
  float *b, *c, *u, *acc, *y, *state;
  RowScratch(float* base, int64_t state_padded, int64_t rows_padded)
      : b(base),
        c(b + kBlockTokens * state_padded),
        u(c + kBlockTokens * state_padded),
        acc(u + kBlockTokens * rows_padded),
        y(acc + kAccumulators * kMaxLanes),
        state(y + kBlockTokens * rows_padded) {}
};

// Rows [p0, p1) of head h through one block whose B and C lie in scratch.
void scan_head(const RowScan& a, const Block& block, const RowTask& task, int64_t h,
               const RowScratch& at, const float* from, float* to) {
  const D d;
  const SsdDims& dims = a.dims;
  const int64_t rows = task.p1 - task.p0, first = h * dims.head_dim + task.p0;
  const int64_t rows_padded = round_up(rows, kMaxLanes);
  std::array<float, kBlockTokens> decay;
  for (int64_t t = 0; t < block.count; ++t) {
    const int64_t row = block.row(t);
    const float* scale = a.scan.scale;
    copy_scaled(a.u + row * dims.x_stride + first, rows,
                scale == nullptr ? 1.0f : scale[row * dims.heads + h], at.u + t * rows_padded);
    decay[static_cast<size_t>(t)] = block.decay(a.decay, dims.heads, h, t);
  }
  const RowBlock k{.count = block.count,
                   .state = dims.state,
                   .state_padded = pad(dims.state),
                   .rows_padded = rows_padded,
                   .group = block.count <= kAccumulators / 16 ? 16 : 4,
                   .b = at.b,
                   .c = at.c,
                   .u = at.u,
                   .decay = decay.data()};
  for (int64_t r = 0; r < rows; r += k.group) {
    scan_row_group(k, r, std::min(k.group, rows - r), from, to, at.acc, at.y, rows_padded);
  }
  const V skip = hn::Set(d, a.skip == nullptr ? 0.0f : a.skip[h]);
  for (int64_t t = 0; t < block.count; ++t) {
    const float* u = a.u + block.row(t) * dims.x_stride + first;
    float* y = a.y + block.row(t) * dims.y_stride + first;
    for (int64_t r = 0; r < rows; r += lanes()) {
      V sum = hn::Load(d, at.y + t * rows_padded + r);
      if (a.skip != nullptr) sum = hn::MulAdd(skip, load(u + r, rows - r), sum);
      store(sum, y + r, rows - r);
    }
  }
}

// A few heads of one group through the whole of a sequence; h0 and ht as in ssd_scan_rows.
void scan_rows(const RowScan& a, const RowTask& task, const float* h0, float* ht, float* scratch) {
  const SsdDims& dims = a.dims;
  const int64_t rows = task.p1 - task.p0, state_padded = pad(dims.state);
  const int64_t g = task.h_begin / dims.heads_per_group();
  const RowScratch at(scratch, state_padded, round_up(rows, kMaxLanes));
  Block block{.first = dims.offsets[task.s],
              .length = dims.offsets[task.s + 1] - dims.offsets[task.s],
              .begin = 0,
              .count = 0,
              .reverse = a.scan.reverse};
  for (; block.begin < block.length; block.begin += kBlockTokens) {
    block.count = std::min(kBlockTokens, block.length - block.begin);
    for (int64_t t = 0; t < block.count; ++t) {
      const int64_t row = block.row(t);
      copy_scaled(a.b + row * dims.b_stride + g * dims.state, dims.state, 1.0f,
                  at.b + t * state_padded);
      copy_scaled(a.c + row * dims.c_stride + g * dims.state, dims.state, 1.0f,
                  at.c + t * state_padded);
    }
    for (int64_t h = task.h_begin; h < task.h_end; ++h) {
      const int64_t offset = (h * dims.head_dim + task.p0) * dims.state;
      float* to = ht == nullptr ? at.state + (h - task.h_begin) * rows * dims.state : ht + offset;
      const float* from = block.begin > 0 ? to : h0 == nullptr ? nullptr : h0 + offset;
      scan_head(a, block, task, h, at, from, to);
    }
  }
}

void discretise(const SsdStepDims& dims, int64_t t, const float* dt_raw, const float* dt_bias,
                const float* rate, float* dt, float* log_decay, float* decay) {
  const D d;
  const float* raw = dt_raw + t * dims.dt_stride;
  for (int64_t h = 0; h < dims.heads; h += lanes()) {
    const int64_t n = dims.heads - h, at = t * dims.heads + h;
    const V wide = sv::softplus(hn::Add(load(raw + h, n), load(dt_bias + h, n)));
    // A NaN stays one: Min and Max give their second argument then.
    const V step = hn::Min(hn::Set(d, dims.dt_max), hn::Max(hn::Set(d, dims.dt_min), wide));
    const V log = hn::Mul(step, load(rate + h, n));
    store(step, dt + at, n);
    store(log, log_decay + at, n);
    store(sv::exp(log), decay + at, n);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(scan_rows);
HWY_EXPORT(discretise);

int64_t ssd_scan_scratch(const SsdDims& dims) {
  return std::max(row_scratch(dims), column_scratch(dims));
}

void ssd_discretise(ThreadPool& threads, const SsdStepDims& dims, const float* dt_raw,
                    const float* dt_bias, const float* a_log, float* rate, float* dt,
                    float* log_decay, float* decay) {
  for (int64_t h = 0; h < dims.heads; ++h) {
    rate[h] = static_cast<float>(-std::exp(static_cast<double>(a_log[h])));
  }
  threads.parallel_for(dims.tokens, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      HWY_DYNAMIC_DISPATCH(discretise)(dims, t, dt_raw, dt_bias, rate, dt, log_decay, decay);
    }
  });
}

namespace {

// A sequence without tokens ends as it began.
void keep_empty_sequences(const SsdDims& dims, const float* const* h0, float* const* ht) {
  const int64_t size = dims.heads * dims.head_dim * dims.state;
  for (int64_t s = 0; s < dims.sequences; ++s) {
    if (dims.offsets[s] != dims.offsets[s + 1] || ht[s] == nullptr || ht[s] == h0[s]) continue;
    if (h0[s] == nullptr) {
      std::fill_n(ht[s], size, 0.0f);
    } else {
      std::copy_n(h0[s], size, ht[s]);
    }
  }
}

}  // namespace

void ssd_scan_rows(ThreadPool& threads, const SsdDims& dims, const SsdScan& scan, const float* u,
                   const float* b, const float* c, const float* decay, const float* skip,
                   const float* const* h0, float* const* ht, float* scratch, float* y) {
  const RowScan rows{dims, scan, u, b, c, decay, skip, y};
  // Heads of a group share the copies of B and C; many tasks share the threads more evenly.
  const int64_t pairs = dims.sequences * dims.heads, hg = dims.heads_per_group();
  const int64_t most = std::min(kHeadsPerTask, hg);
  const int64_t heads = std::clamp<int64_t>(pairs / (4 * threads.size()), 1, most);
  const int64_t per_group = (hg + heads - 1) / heads;
  // Rows of a state are independent: few heads are split so that every thread has work.
  const int64_t wanted = (2 * threads.size() + pairs - 1) / std::max<int64_t>(pairs, 1);
  const int64_t blocks = round_up(dims.head_dim, kRowBlock) / kRowBlock;
  const int64_t parts = threads.size() == 1 ? 1 : std::clamp<int64_t>(wanted, 1, blocks);
  const int64_t part = (blocks + parts - 1) / parts * kRowBlock;
  const int64_t length = dims.tokens / std::max<int64_t>(1, dims.sequences);
  const int64_t work = heads * part * dims.state * std::max<int64_t>(1, length);
  const int64_t worker_scratch = ssd_scan_scratch(dims);
  threads.parallel_for(
      dims.sequences * dims.groups * per_group * parts, std::max<int64_t>(1, kGrainWork / work),
      [&](int64_t begin, int64_t end, int worker) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t p0 = i % parts * part, j = i / parts;
          const int64_t g = j / per_group % dims.groups, s = j / per_group / dims.groups;
          const int64_t h = g * hg + j % per_group * heads;
          if (p0 >= dims.head_dim) continue;
          const RowTask task{.s = s,
                             .h_begin = h,
                             .h_end = std::min(h + heads, (g + 1) * hg),
                             .p0 = p0,
                             .p1 = std::min(p0 + part, dims.head_dim)};
          HWY_DYNAMIC_DISPATCH(scan_rows)
          (rows, task, h0[s], ht[s], scratch + worker * worker_scratch);
        }
      });
  keep_empty_sequences(dims, h0, ht);
}

}  // namespace braid::cpu
#endif
