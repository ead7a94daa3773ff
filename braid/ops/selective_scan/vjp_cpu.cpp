// The vjp, last token first; see README.md. For each tile of states a block of tokens is scanned
// again from its mark, which leaves decays and decayed states in scratch, and then backwards.
//
// db and dc sum over channels: within a block of channels lane by lane and then by a tree, over the
// blocks in order.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/selective_scan/backward.h"
#include "braid/ops/selective_scan/kernels.h"
#include "braid/ops/selective_scan/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/selective_scan/vjp_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/selective_scan/block-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

HWY_INLINE float* tile_cell(float* tile, int64_t t, int j) {
  return tile + (t * kMostStates + j) * kScanLanes;
}

HWY_INLINE void add_to(float* at, V v) { hn::Store(hn::Add(hn::Load(D(), at), v), D(), at); }

// Forward from `mark` (N, E) at this vector of channels: decay, decay h_{t-1} and y.
template <bool kInvariant, int kN>
HWY_INLINE void replay_tile(const SelectiveTile<kInvariant, kN>& tile, const SelectiveBlock& k,
                            int64_t i, const float* mark, int64_t channels,
                            const BackwardScratch& at) {
  const D d;
  V h[kN];
  HWY_UNROLL(4)
  for (int j = 0; j < kN; ++j) h[j] = load(mark + (tile.n + j) * channels + i, k.width - i);
  for (int64_t t = 0; t < k.count; ++t) {
    const int64_t cell = t * kScanChannels + i;
    const V dt = hn::Load(d, at.dt + cell), u = hn::Load(d, at.u + cell);
    V y = hn::Load(d, at.y + cell);
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) {
      const V decay = tile.decay(j, dt), decayed = hn::Mul(decay, h[j]);
      hn::Store(decay, d, tile_cell(at.decay, t, j));
      hn::Store(decayed, d, tile_cell(at.decayed, t, j));
      h[j] = hn::MulAdd(u, tile.b(t, j), decayed);
      y = hn::MulAdd(h[j], tile.c(t, j), y);
    }
    hn::Store(y, d, at.y + cell);
  }
}

// States [n, n + kN) of the vector of channels at `i`, forward and backward through the block.
template <bool kInvariant, int kN>
HWY_NOINLINE void vjp_tile(const SelectiveCoefficients& coefficients, const SelectiveBlock& k,
                           int64_t n, int64_t i, const float* mark, int64_t channels,
                           const BackwardScratch& at) {
  const D d;
  const SelectiveTile<kInvariant, kN> tile(coefficients, n, i, hn::Load(d, at.dt + i));
  replay_tile(tile, k, i, mark, channels, at);
  V g[kN], rate[kN], d_rate[kN], db[kN], dc[kN];
  HWY_UNROLL(4)
  for (int j = 0; j < kN; ++j) {
    g[j] = hn::Load(d, at.g + (n + j) * kScanChannels + i);
    rate[j] = coefficients.table(coefficients.rate, n + j, i);
    d_rate[j] = db[j] = dc[j] = hn::Zero(d);
  }
  for (int64_t t = k.count - 1; t >= 0; --t) {
    const int64_t cell = t * kScanChannels + i;
    const V dt = hn::Load(d, at.dt + cell), u = hn::Load(d, at.u + cell);
    const V dy = hn::Load(d, at.dy + cell);
    V du = hn::Load(d, at.du + cell), ddt = hn::Load(d, at.ddt + cell);
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) {
      const V decayed = hn::Load(d, tile_cell(at.decayed, t, j)), b = tile.b(t, j);
      const V h = hn::MulAdd(u, b, decayed);
      g[j] = hn::MulAdd(tile.c(t, j), dy, g[j]);
      if constexpr (kInvariant) {
        db[j] = hn::MulAdd(g[j], u, db[j]);
        dc[j] = hn::MulAdd(h, dy, dc[j]);
      } else {
        float* sum_b = tile_cell(at.sum_b, t, j);
        float* sum_c = tile_cell(at.sum_c, t, j);
        hn::Store(hn::MulAdd(g[j], u, hn::Load(d, sum_b)), d, sum_b);
        hn::Store(hn::MulAdd(h, dy, hn::Load(d, sum_c)), d, sum_c);
      }
      du = hn::MulAdd(g[j], b, du);
      const V w = hn::Mul(g[j], decayed);
      ddt = hn::MulAdd(w, rate[j], ddt);
      d_rate[j] = hn::MulAdd(w, dt, d_rate[j]);
      g[j] = hn::Mul(g[j], hn::Load(d, tile_cell(at.decay, t, j)));
    }
    hn::Store(du, d, at.du + cell);
    hn::Store(ddt, d, at.ddt + cell);
  }
  HWY_UNROLL(4)
  for (int j = 0; j < kN; ++j) {
    const int64_t cell = (n + j) * kScanChannels + i;
    hn::Store(g[j], d, at.g + cell);
    add_to(at.d_rate + cell, d_rate[j]);
    if constexpr (kInvariant) {
      add_to(at.db + cell, db[j]);
      add_to(at.dc + cell, dc[j]);
    }
  }
}

// Sums over the channels of a block of kN states of db and dc, to rows of parts.
template <int kN>
void sum_tile(const SelectiveBlock& k, const BackwardScratch& at, int64_t state, int64_t n,
              float* parts) {
  const D d;
  for (int64_t t = 0; t < k.count; ++t) {
    float* row = parts + (k.row + t) * 2 * state + n;
    for (const auto& [sum, to] : {std::pair(at.sum_b, row), std::pair(at.sum_c, row + state)}) {
      float four[4];
      const V rest = hn::Zero(d);
      sum_lanes_of_four(hn::Load(d, tile_cell(sum, t, 0)),
                        kN > 1 ? hn::Load(d, tile_cell(sum, t, 1)) : rest,
                        kN > 2 ? hn::Load(d, tile_cell(sum, t, 2)) : rest,
                        kN > 3 ? hn::Load(d, tile_cell(sum, t, 3)) : rest, four);
      std::copy_n(four, kN, to);
    }
  }
}

template <bool kInvariant, int kN>
void vjp_states(const SelectiveBackward& a, const SelectiveCoefficients& coefficients,
                const SelectiveBlock& k, int64_t n, const float* mark, float* parts,
                const BackwardScratch& at) {
  std::fill_n(at.sum_b, kTileRows, 0.0f);
  std::fill_n(at.sum_c, kTileRows, 0.0f);
  for (int64_t i = 0; i < k.width; i += lanes()) {
    vjp_tile<kInvariant, kN>(coefficients, k, n, i, mark, a.dims.channels, at);
  }
  if (!kInvariant) sum_tile<kN>(k, at, a.dims.state, n, parts);
}

// dy before the gate; zeros where sums begin.
void load_gradient(const SelectiveBackward& a, const SelectiveBlock& k, const BackwardScratch& at) {
  const D d;
  for (int64_t t = 0; t < k.count; ++t) {
    const float* dy = a.dy + (k.row + t) * a.dy_stride + k.e0;
    const float* z = a.in.z == nullptr ? nullptr : a.in.z + (k.row + t) * a.dims.z_stride + k.e0;
    for (int64_t i = 0; i < k.width; i += lanes()) {
      const int64_t cell = t * kScanChannels + i;
      V v = load(dy + i, k.width - i);
      if (z != nullptr) v = hn::Mul(v, sv::silu(load(z + i, k.width - i)));
      hn::Store(v, d, at.dy + cell);
      hn::Store(hn::Zero(d), d, at.du + cell);
      hn::Store(hn::Zero(d), d, at.ddt + cell);
    }
  }
}

// What the sums over the states give: dx, d_dt_raw, dz, and the block's part of dd and d_dt_bias.
void store_gradients(const SelectiveBackward& a, const SelectiveBlock& k,
                     const BackwardScratch& at) {
  const D d;
  const int64_t E = a.dims.channels;
  for (int64_t i = 0; i < k.width; i += lanes()) {
    const int64_t e = k.e0 + i, left = k.width - i;
    const V skip = a.in.d == nullptr ? hn::Zero(d) : load(a.in.d + e, left);
    V d_bias = hn::Zero(d), d_skip = hn::Zero(d);
    for (int64_t t = 0; t < k.count; ++t) {
      const int64_t cell = t * kScanChannels + i, row = k.row + t;
      const V x = hn::Load(d, at.x + cell), dt = hn::Load(d, at.dt + cell);
      const V dy = hn::Load(d, at.dy + cell), du = hn::Load(d, at.du + cell);
      store(hn::MulAdd(dt, du, hn::Mul(skip, dy)), a.out.dx + row * E + e, left);
      d_skip = hn::MulAdd(dy, x, d_skip);
      // Rates are per factor of 2.
      const V ddt =
          hn::MulAdd(hn::Set(d, 0.693147182f), hn::Load(d, at.ddt + cell), hn::Mul(x, du));
      const V d_raw = hn::Mul(ddt, sv::sigmoid(raw_step(a.dims, a.in, row, e, left)));
      d_bias = hn::Add(d_bias, d_raw);
      if (a.out.d_dt_raw != nullptr) store(d_raw, a.out.d_dt_raw + row * E + e, left);
      if (a.out.dz == nullptr) continue;
      const V z = load(a.in.z + row * a.dims.z_stride + e, left);
      const V slope = sv::silu_slope(z, sv::sigmoid(z));
      const V d_out = load(a.dy + row * a.dy_stride + e, left);
      store(hn::Mul(hn::Mul(d_out, hn::Load(d, at.y + cell)), slope), a.out.dz + row * E + e, left);
    }
    add_to(at.d_bias + i, d_bias);
    add_to(at.d_skip + i, d_skip);
  }
}

template <bool kInvariant>
void vjp_block(const SelectiveBackward& a, const SelectiveBlock& k, const float* mark, float* parts,
               const BackwardScratch& at) {
  load_block(a.dims, a.in, k, at.dt, at.u, at.y, at.x);
  load_gradient(a, k, at);
  const SelectiveCoefficients coefficients(a.dims, a.in, k);
  int64_t n = 0;
  for (; n + kMostStates <= a.dims.state; n += kMostStates) {
    vjp_states<kInvariant, kMostStates>(a, coefficients, k, n, mark, parts, at);
  }
  for (; n < a.dims.state; ++n) {
    vjp_states<kInvariant, 1>(a, coefficients, k, n, mark, parts, at);
  }
  store_gradients(a, k, at);
}

// Gradients of the parameters of channels [e0, e0 + width).
void store_parameter_gradients(const SelectiveBackward& a, int64_t e0, int64_t width,
                               const BackwardScratch& at) {
  const int64_t N = a.dims.state, padded = a.dims.padded();
  for (int64_t i = 0; i < width; ++i) {
    const int64_t e = e0 + i;
    a.out.d_dt_bias[e] = at.d_bias[i];
    if (a.out.dd != nullptr) a.out.dd[e] = at.d_skip[i];
    for (int64_t n = 0; n < N; ++n) {
      const int64_t cell = n * kScanChannels + i;
      a.out.da_log[e * N + n] = at.d_rate[cell] * a.in.rate[n * padded + e] * 0.693147182f;
      if (!a.dims.invariant) continue;
      a.out.db[e * N + n] = at.db[cell];
      a.out.dc[e * N + n] = at.dc[cell];
    }
  }
}

// One block of channels through a wave of blocks of tokens.
void selective_scan_vjp_task(const SelectiveBackward& a, BackwardCursor cursor, int64_t block,
                             const float* const* d_final, float* const* d_initial, float* worker,
                             float* gathered) {
  const SelectiveScanDims& dims = a.dims;
  const BackwardScratch at(worker, gathered, dims.state);
  const int64_t e0 = block * kScanChannels, width = std::min(kScanChannels, dims.channels - e0);
  float* parts = dims.invariant ? nullptr : a.parts + block * dims.tokens * 2 * dims.state;
  for (int64_t i = 0; i < kScanWave && !cursor.done(); ++i, cursor.next()) {
    if (cursor.begins_sequence()) load_states(dims, d_final[cursor.s], e0, width, at.g);
    const SelectiveScanCell& cell = cursor.cells->cells[cursor.i];
    const int64_t begin = cursor.m * kScanTokens;
    const SelectiveBlock k{.row = cell.begin + begin,
                           .count = std::min(kScanTokens, cell.count - begin),
                           .e0 = e0,
                           .width = width};
    const float* mark = a.marks + (cell.first_mark + cursor.m) * dims.state * dims.channels + e0;
    if (dims.invariant) {
      vjp_block<true>(a, k, mark, parts, at);
    } else {
      vjp_block<false>(a, k, mark, parts, at);
    }
    float* initial = d_initial[cursor.s];
    if (cursor.ends_sequence() && initial != nullptr) {
      store_states(dims, at.g, e0, width, initial);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(selective_scan_vjp_task);
HWY_EXPORT(store_parameter_gradients);

namespace {

int64_t blocks_of(const SelectiveScanDims& dims) {
  return (dims.channels + kScanChannels - 1) / kScanChannels;
}

// A sequence without tokens passes the gradient of its state on.
void pass_empty_sequences(const SelectiveScanDims& dims, const SelectiveScanCells& cells,
                          const float* const* d_final, float* const* d_initial) {
  const int64_t size = dims.state * dims.channels;
  for (int64_t s = 0; s < cells.sequences; ++s) {
    if (d_initial[s] == nullptr || cells.cells[cells.firsts[s]].count > 0) continue;
    if (d_final[s] == nullptr) {
      std::fill_n(d_initial[s], size, 0.0f);
    } else {
      std::copy_n(d_final[s], size, d_initial[s]);
    }
  }
}

// db and dc (T, N) from the parts of the blocks of channels, in their order.
void sum_parts(ThreadPool& threads, const SelectiveScanDims& dims, const float* parts, float* db,
               float* dc) {
  const int64_t blocks = blocks_of(dims), N = dims.state, row = 2 * N;
  threads.parallel_for(dims.tokens, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(parts + t * row, N, db + t * N);
      std::copy_n(parts + t * row + N, N, dc + t * N);
      for (int64_t block = 1; block < blocks; ++block) {
        const float* part = parts + (block * dims.tokens + t) * row;
        for (int64_t n = 0; n < N; ++n) db[t * N + n] += part[n];
        for (int64_t n = 0; n < N; ++n) dc[t * N + n] += part[N + n];
      }
    }
  });
}

}  // namespace

int64_t selective_scan_vjp_scratch(const SelectiveScanDims& dims, int64_t threads) {
  return threads * BackwardScratch::kWorker +
         blocks_of(dims) * BackwardScratch::gathered(dims.state);
}

int64_t selective_scan_vjp_parts(const SelectiveScanDims& dims) {
  return dims.invariant ? 0 : blocks_of(dims) * dims.tokens * 2 * dims.state;
}

void selective_scan_vjp(ThreadPool& threads, const SelectiveScanDims& dims,
                        const SelectiveScanCells& cells, const SelectiveScanOperands& in,
                        const float* marks, const float* dy, int64_t dy_stride,
                        const float* const* d_final, float* const* d_initial, float* scratch,
                        float* parts, const SelectiveScanGrads& out) {
  const SelectiveBackward backward{dims, in, marks, dy, dy_stride, parts, out};
  const int64_t blocks = blocks_of(dims), size = BackwardScratch::gathered(dims.state);
  float* gathered = scratch + threads.size() * BackwardScratch::kWorker;
  std::fill_n(gathered, blocks * size, 0.0f);
  BackwardCursor cursor(cells);
  while (!cursor.done()) {
    threads.parallel_for(blocks, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        HWY_DYNAMIC_DISPATCH(selective_scan_vjp_task)
        (backward, cursor, i, d_final, d_initial, scratch + worker * BackwardScratch::kWorker,
         gathered + i * size);
      }
    });
    for (int64_t i = 0; i < kScanWave && !cursor.done(); ++i) cursor.next();
  }
  pass_empty_sequences(dims, cells, d_final, d_initial);
  for (int64_t i = 0; i < blocks; ++i) {
    HWY_DYNAMIC_DISPATCH(store_parameter_gradients)
    (backward, i * kScanChannels, std::min(kScanChannels, dims.channels - i * kScanChannels),
     BackwardScratch(scratch, gathered + i * size, dims.state));
  }
  if (!dims.invariant) sum_parts(threads, dims, parts, out.db, out.dc);
}

}  // namespace braid::cpu
#endif
