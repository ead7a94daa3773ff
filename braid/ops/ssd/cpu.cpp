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
  const float* b;      // (count, state_padded)
  const float* c;      // (count, state_padded)
  const float* u;      // (count, rows_padded)
  const float* decay;  // (count)
};

// Rows [row, row + kRows) and columns [column, column + kVectors lanes) of the state through the
// block. acc: one vector of partial sums of y per row and token, chained from column to column.
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
      y[r] = column == 0 ? hn::Zero(d) : hn::Load(d, acc + (r * k.count + t) * lanes());
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
    for (int r = 0; r < kRows; ++r) hn::Store(y[r], d, acc + (r * k.count + t) * lanes());
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
    row_tile<kRows, kVectors>(k, row + r, column, from, to, acc + r * k.count * lanes());
  }
  for (; r < rows; ++r) {
    row_tile<1, kVectors>(k, row + r, column, from, to, acc + r * k.count * lanes());
  }
}

// The sums over the lanes of four vectors: a tree that is the same for each of them.
HWY_INLINE void sum_lanes_of_four(const float* acc, float* y) {
#if HWY_TARGET == HWY_SCALAR
  std::copy_n(acc, 4, y);
#else
  const D d;
  const int64_t n = lanes();
  const V a0 = hn::Load(d, acc), a1 = hn::Load(d, acc + n);
  const V a2 = hn::Load(d, acc + 2 * n), a3 = hn::Load(d, acc + 3 * n);
  const V s02 = hn::Add(hn::InterleaveLower(d, a0, a2), hn::InterleaveUpper(d, a0, a2));
  const V s13 = hn::Add(hn::InterleaveLower(d, a1, a3), hn::InterleaveUpper(d, a1, a3));
  const V s = hn::Add(hn::InterleaveLower(d, s02, s13), hn::InterleaveUpper(d, s02, s13));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<D> d2;
  const hn::Half<hn::Half<D> > d4;
  const auto s2 = hn::Add(hn::LowerHalf(d2, s), hn::UpperHalf(d2, s));
  hn::StoreU(hn::Add(hn::LowerHalf(d4, s2), hn::UpperHalf(d4, s2)), d4, y);
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<D> d4;
  hn::StoreU(hn::Add(hn::LowerHalf(d4, s), hn::UpperHalf(d4, s)), d4, y);
#else
  hn::StoreU(s, d, y);
#endif
#endif
}

// `rows` rows from `row` on through all columns; y_of_rows (rows, count).
void scan_row_group(const RowBlock& k, int64_t row, int64_t rows, const float* from, float* to,
                    float* acc, float* y_of_rows) {
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
  for (int64_t i = 0; i < rows * k.count; i += 4) sum_lanes_of_four(acc + i * n, y_of_rows + i);
}

// One worker's scratch; see ssd_scan_scratch.
struct RowScratch {
  float *b, *c, *u, *acc, *y, *state;
  RowScratch(float* base, int64_t state_padded, int64_t rows_padded)
      : b(base),
        c(b + kBlockTokens * state_padded),
        u(c + kBlockTokens * state_padded),
        acc(u + kBlockTokens * rows_padded),
        y(acc + kAccumulators * kMaxLanes),
        state(y + kAccumulators) {}
};

// Rows [p0, p1) of head h through the whole of sequence s.
void scan_rows(const RowScan& a, int64_t s, int64_t h, int64_t p0, int64_t p1, const float* h0,
               float* ht, float* scratch) {
  const SsdDims& dims = a.dims;
  const int64_t rows = p1 - p0, rows_padded = pad(rows), state_padded = pad(dims.state);
  const int64_t g = h / dims.heads_per_group();
  const RowScratch at(scratch, state_padded, rows_padded);
  const int64_t offset = (h * dims.head_dim + p0) * dims.state;
  const float* from = h0 == nullptr ? nullptr : h0 + offset;
  float* to = ht == nullptr ? at.state : ht + offset;
  Block block{.first = dims.offsets[s],
              .length = dims.offsets[s + 1] - dims.offsets[s],
              .begin = 0,
              .count = 0,
              .reverse = a.scan.reverse};
  if (block.length == 0 && ht != nullptr && from != to) {
    for (int64_t i = 0; i < rows * dims.state; ++i) to[i] = from == nullptr ? 0.0f : from[i];
  }
  const float skip = a.skip == nullptr ? 0.0f : a.skip[h];
  std::array<float, kBlockTokens> decay;
  for (; block.begin < block.length; block.begin += kBlockTokens, from = to) {
    block.count = std::min(kBlockTokens, block.length - block.begin);
    for (int64_t t = 0; t < block.count; ++t) {
      const int64_t row = block.row(t);
      const float* u = a.u + row * dims.x_stride + h * dims.head_dim + p0;
      const float* scale = a.scan.scale;
      copy_scaled(u, rows, scale == nullptr ? 1.0f : scale[row * dims.heads + h],
                  at.u + t * rows_padded);
      copy_scaled(a.b + row * dims.b_stride + g * dims.state, dims.state, 1.0f,
                  at.b + t * state_padded);
      copy_scaled(a.c + row * dims.c_stride + g * dims.state, dims.state, 1.0f,
                  at.c + t * state_padded);
      decay[static_cast<size_t>(t)] = block.decay(a.decay, dims.heads, h, t);
    }
    const RowBlock k{.count = block.count,
                     .state = dims.state,
                     .state_padded = state_padded,
                     .rows_padded = rows_padded,
                     .b = at.b,
                     .c = at.c,
                     .u = at.u,
                     .decay = decay.data()};
    const int64_t group = block.count <= 4 ? 16 : 4;
    for (int64_t r0 = 0; r0 < rows; r0 += group) {
      const int64_t count = std::min(group, rows - r0);
      scan_row_group(k, r0, count, from, to, at.acc, at.y);
      for (int64_t t = 0; t < block.count; ++t) {
        const int64_t row = block.row(t);
        const float* u = a.u + row * dims.x_stride + h * dims.head_dim + p0 + r0;
        float* y = a.y + row * dims.y_stride + h * dims.head_dim + p0 + r0;
        for (int64_t r = 0; r < count; ++r) {
          const float sum = at.y[r * block.count + t];
          y[r] = a.skip == nullptr ? sum : sum + skip * u[r];
        }
      }
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

void ssd_scan_rows(ThreadPool& threads, const SsdDims& dims, const SsdScan& scan, const float* u,
                   const float* b, const float* c, const float* decay, const float* skip,
                   const float* const* h0, float* const* ht, float* scratch, float* y) {
  const RowScan rows{dims, scan, u, b, c, decay, skip, y};
  // Rows of a state are independent: few heads are split so that every thread has work.
  const int64_t pairs = dims.sequences * dims.heads;
  const int64_t wanted = (2 * threads.size() + pairs - 1) / std::max<int64_t>(pairs, 1);
  const int64_t blocks = round_up(dims.head_dim, kRowBlock) / kRowBlock;
  const int64_t parts = threads.size() == 1 ? 1 : std::clamp<int64_t>(wanted, 1, blocks);
  const int64_t part = (blocks + parts - 1) / parts * kRowBlock;
  const int64_t work =
      part * dims.state * std::max<int64_t>(1, dims.tokens / std::max<int64_t>(1, dims.sequences));
  const int64_t worker_scratch = ssd_scan_scratch(dims);
  threads.parallel_for(pairs * parts, std::max<int64_t>(1, kGrainWork / work),
                       [&](int64_t begin, int64_t end, int worker) {
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t s = i / parts / dims.heads, h = i / parts % dims.heads;
                           const int64_t p0 = i % parts * part,
                                         p1 = std::min(p0 + part, dims.head_dim);
                           if (p0 >= p1) continue;
                           HWY_DYNAMIC_DISPATCH(scan_rows)
                           (rows, s, h, p0, p1, h0[s], ht[s], scratch + worker * worker_scratch);
                         }
                       });
}

}  // namespace braid::cpu
#endif
