// The scan. A tile of states of one vector of channels stays in registers over a block of tokens;
// steps, scaled inputs and outputs of the block lie in scratch.
//
// Bound: for each state element and token one exponential (some 12 instructions) and 4
// multiply-adds. For one token at a time, the state's 8 bytes (read and write) per element.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/selective_scan/kernels.h"
#include "braid/ops/selective_scan/scan.h"
#include "braid/simd/gemm.h"
#include "braid/simd/prefetch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/selective_scan/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/selective_scan/block-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

struct SelectiveScratch {
  float *dt, *u, *y, *h;
  explicit SelectiveScratch(float* base)
      : dt(base), u(dt + kScanRows), y(u + kScanRows), h(y + kScanRows) {}
};

// States [n, n + kN) of the vector of channels at `i` through the block; y gathers C h over n.
template <bool kInvariant, int kN>
HWY_NOINLINE void scan_tile(const SelectiveCoefficients& k, int64_t count, int64_t n, int64_t i,
                            const SelectiveScratch& at) {
  const D d;
  const SelectiveTile<kInvariant, kN> tile(k, n, i, hn::Load(d, at.dt + i));
  V h[kN];
  HWY_UNROLL(8)
  for (int j = 0; j < kN; ++j) h[j] = hn::Load(d, at.h + (n + j) * kScanChannels + i);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t cell = t * kScanChannels + i;
    const V dt = hn::Load(d, at.dt + cell), u = hn::Load(d, at.u + cell);
    V y = hn::Load(d, at.y + cell);
    HWY_UNROLL(8)
    for (int j = 0; j < kN; ++j) {
      h[j] = hn::MulAdd(tile.decay(j, dt), h[j], hn::Mul(u, tile.b(t, j)));
      y = hn::MulAdd(h[j], tile.c(t, j), y);
    }
    hn::Store(y, d, at.y + cell);
  }
  HWY_UNROLL(8)
  for (int j = 0; j < kN; ++j) hn::Store(h[j], d, at.h + (n + j) * kScanChannels + i);
}

template <bool kInvariant>
void scan_block(const SelectiveCoefficients& k, int64_t count, int64_t width, int64_t state,
                const SelectiveScratch& at) {
  constexpr int kMost = kManyRegisters ? 8 : 4;
  for (int64_t i = 0; i < width; i += lanes()) {
    int64_t n = 0;
    for (; n + kMost <= state; n += kMost) scan_tile<kInvariant, kMost>(k, count, n, i, at);
    for (; n < state; ++n) scan_tile<kInvariant, 1>(k, count, n, i, at);
  }
}

void store_outputs(const SelectiveForward& a, const SelectiveBlock& k, const float* from) {
  const D d;
  for (int64_t t = 0; t < k.count; ++t) {
    float* y = a.out.y + (k.row + t) * a.dims.channels + k.e0;
    const float* z = a.in.z == nullptr ? nullptr : a.in.z + (k.row + t) * a.dims.z_stride + k.e0;
    for (int64_t i = 0; i < k.width; i += lanes()) {
      V v = hn::Load(d, from + t * kScanChannels + i);
      if (z != nullptr) {
        simd::prefetch_row_ahead(z + i, a.dims.z_stride);
        v = hn::Mul(v, sv::silu(load(z + i, k.width - i)));
      }
      store(v, y + i, k.width - i);
    }
  }
}

void add_steps(const SelectiveBlock& k, const float* dt, bool first, float* sums) {
  for (int64_t i = 0; i < k.width; i += lanes()) {
    V sum = first ? hn::Zero(D()) : load(sums + i, k.width - i);
    for (int64_t t = 0; t < k.count; ++t) {
      sum = hn::Add(sum, hn::Load(D(), dt + t * kScanChannels + i));
    }
    store(sum, sums + i, k.width - i);
  }
}

void selective_scan_task(const SelectiveForward& a, const SelectiveTask& task, const float* h0,
                         float* ht, float* scratch) {
  const SelectiveScanDims& dims = a.dims;
  const SelectiveScratch at(scratch);
  const int64_t size = dims.state * dims.channels;
  load_states(dims, h0, task.e0, task.width, at.h);
  for (int64_t m = task.begin; m < task.end; ++m) {
    const int64_t begin = m * kScanTokens;
    const SelectiveBlock k{.row = task.cell.begin + begin,
                           .count = std::min(kScanTokens, task.cell.count - begin),
                           .e0 = task.e0,
                           .width = task.width};
    if (a.out.marks != nullptr) {
      float* mark = a.out.marks + (task.cell.first_mark + m) * size;
      store_states(dims, at.h, task.e0, task.width, mark);
    }
    load_block(dims, a.in, k, at.dt, at.u, at.y, nullptr);
    const SelectiveCoefficients coefficients(dims, a.in, k);
    if (dims.invariant) {
      scan_block<true>(coefficients, k.count, k.width, dims.state, at);
    } else {
      scan_block<false>(coefficients, k.count, k.width, dims.state, at);
    }
    if (a.out.dt_sums != nullptr) {
      add_steps(k, at.dt, m == 0, a.out.dt_sums + task.index * dims.channels + task.e0);
    }
    if (a.out.y != nullptr) store_outputs(a, k, at.y);
  }
  if (ht != nullptr) store_states(dims, at.h, task.e0, task.width, ht);
}

// Channels [e0, e0 + width) of the cells of one sequence: sums become states before the cells.
void selective_scan_carry_task(const SelectiveScanDims& dims, const float* rate, int64_t e0,
                               int64_t width, int64_t cells, const float* dt_sums, const float* h0,
                               float* states) {
  const D d;
  const int64_t size = dims.state * dims.channels;
  for (int64_t n = 0; n < dims.state; ++n) {
    for (int64_t i = 0; i < width; i += lanes()) {
      const int64_t at = n * dims.channels + e0 + i, left = width - i;
      const V r = hn::LoadU(d, rate + n * dims.padded() + e0 + i);
      V h = h0 == nullptr ? hn::Zero(d) : load(h0 + at, left);
      for (int64_t cell = 0; cell < cells; ++cell) {
        float* state = states + cell * size + at;
        const V sum = load(state, left);
        const V dt = load(dt_sums + cell * dims.channels + e0 + i, left);
        store(h, state, left);
        h = hn::MulAdd(exp2_nonpositive(d, hn::Mul(dt, r)), h, sum);
      }
    }
  }
}

// Channels [e0, e0 + width), a multiple of the lanes or up to the last channel.
void selective_scan_table_task(const SelectiveScanDims& dims, bool rates, int64_t e0, int64_t width,
                               const float* x, float* table) {
  const D d;
  simd::transpose(width, dims.state, x + e0 * dims.state, dims.state, table + e0, dims.padded());
  const V scale = hn::Set(d, -1.44269504f);
  for (int64_t n = 0; n < dims.state; ++n) {
    float* row = table + n * dims.padded() + e0;
    if (rates) {
      for (int64_t i = 0; i < width; i += lanes()) {
        store(hn::Mul(scale, sv::exp(load(row + i, width - i))), row + i, width - i);
      }
    }
    if (e0 + width == dims.channels) {
      std::fill(row + width, row + dims.padded() - e0, 0.0f);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(selective_scan_task);
HWY_EXPORT(selective_scan_carry_task);
HWY_EXPORT(selective_scan_table_task);

namespace {

int64_t blocks_of(const SelectiveScanDims& dims, int64_t width) {
  return (dims.channels + width - 1) / width;
}

int64_t grain_of(int64_t work) { return std::max<int64_t>(1, kScanGrainWork / work); }

}  // namespace

void selective_scan_table(ThreadPool& threads, const SelectiveScanDims& dims, bool rates,
                          const float* x, float* table) {
  threads.parallel_for(blocks_of(dims, kScanChannels), grain_of(kScanChannels * dims.state / 4),
                       [&](int64_t begin, int64_t end) {
                         const int64_t e0 = begin * kScanChannels;
                         const int64_t last = std::min(dims.channels, end * kScanChannels);
                         HWY_DYNAMIC_DISPATCH(selective_scan_table_task)
                         (dims, rates, e0, last - e0, x, table);
                       });
}

int64_t selective_scan_scratch(const SelectiveScanDims& dims) {
  return 3 * kScanRows + dims.state * kScanChannels;
}

void selective_scan(ThreadPool& threads, const SelectiveScanDims& dims,
                    const SelectiveScanCells& cells, const SelectiveScanOperands& in,
                    const float* const* h0, float* const* ht, float* scratch,
                    const SelectiveScanOutputs& out) {
  const SelectiveForward forward{dims, in, out};
  // Few tasks are split so that every thread has some: channels are independent.
  const bool few = cells.count * blocks_of(dims, kScanChannels) < 4 * threads.size();
  const int64_t width = few ? kScanLanes : kScanChannels, blocks = blocks_of(dims, width);
  const int64_t length = 1 + dims.tokens / std::max<int64_t>(1, cells.count);
  const int64_t work = width * dims.state * std::min(length, kScanWave * kScanTokens);
  const int64_t worker_scratch = selective_scan_scratch(dims);
  int64_t marks = 1;
  for (int64_t i = 0; i < cells.count; ++i) marks = std::max(marks, cells.cells[i].marks());
  for (int64_t wave = 0; wave < marks; wave += kScanWave) {
    threads.parallel_for(
        cells.count * blocks, grain_of(work), [&](int64_t begin, int64_t end, int worker) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t index = i / blocks, e0 = i % blocks * width;
            const SelectiveScanCell& cell = cells.cells[index];
            float* to = ht[index];
            // A cell whose last state nobody wants has nowhere to wait for its next wave.
            const int64_t last = to == nullptr ? cell.marks() : wave + kScanWave;
            if (wave > 0 && (to == nullptr || wave >= cell.marks())) continue;
            const SelectiveTask task{.cell = cell,
                                     .index = index,
                                     .begin = wave,
                                     .end = std::min(last, cell.marks()),
                                     .e0 = e0,
                                     .width = std::min(width, dims.channels - e0)};
            HWY_DYNAMIC_DISPATCH(selective_scan_task)
            (forward, task, wave > 0 ? to : h0[index], to, scratch + worker * worker_scratch);
          }
        });
  }
}

void selective_scan_carry(ThreadPool& threads, const SelectiveScanDims& dims,
                          const SelectiveScanCells& cells, const float* rate, const float* dt_sums,
                          const float* const* h0, float* states) {
  const int64_t blocks = blocks_of(dims, kScanChannels);
  const int64_t work = kScanChannels * dims.state * (1 + cells.count / (1 + cells.sequences));
  threads.parallel_for(cells.sequences * blocks, grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / blocks, e0 = i % blocks * kScanChannels;
      const int64_t first = cells.firsts[s];
      HWY_DYNAMIC_DISPATCH(selective_scan_carry_task)
      (dims, rate, e0, std::min(kScanChannels, dims.channels - e0), cells.firsts[s + 1] - first,
       dt_sums + first * dims.channels, h0[s], states + first * dims.state * dims.channels);
    }
  });
}

}  // namespace braid::cpu
#endif
