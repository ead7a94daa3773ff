#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/linear/bf16.h"
#include "braid/ops/linear/bf16_widened.h"
#include "braid/ops/linear/kernels.h"
#include "braid/ops/linear/on_thread.h"
#include "braid/simd/bf16_dot.h"
#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

constexpr int64_t kPanel = PackedMatrix::kPanel;
constexpr int64_t kTileRows = 14;
// Half of an L2 holds a slab of a while panels of b stream past it.
constexpr int64_t kSlabBytes = 384 << 10;
// Tiles wanted for a slab that its task packs itself: so many rows repay the reading of b.
constexpr int64_t kSlabTiles = 8;
// Inputs at a time when there are many rows: a tile of a and the panel it meets stay near.
constexpr int64_t kBlockUnits = 1024;
// Fewer where a block of b is widened into a buffer first.
constexpr int64_t kWidenedUnits = 512;
// With so few, reading b is what a product waits for.
constexpr int64_t kFewTiles = 2;
// How far ahead of itself such a product fetches: what memory delivers while a request is under
// way.
constexpr int64_t kBytesAhead = 4096;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a call is cut up. None of it changes a bit of the result: a block of k continues the chain
// that the one before it stored.
struct Plan {
  bool pairs;     // a is bfloat16 pairs, a unit is a pair; else a unit is a float
  bool widened;   // b is bfloat16 and widened to float32, a panel's block at a time
  bool packed;    // a is copied into tiles, [tile][unit][rows]
  bool by_slab;   // by each task for its slab, a block at a time, into a near cache; else before
  bool by_rows;   // of too few rows to repay turning them: [row][unit]
  int64_t units;  // along k
  int64_t rows;   // of a tile
  int64_t tiles;  // of a
  int64_t slab;   // tiles to a task
  int64_t group;  // panels to a task
  int64_t block;  // units to a block
  int64_t slabs, groups;
};

// Few panels do not repay copying a float32 a whose tiles stay in a near cache. Bounds are
// measured; rows or columns that are a multiple of pages (or half pages) apart crowd into few of
// its sets.
bool read_in_place(const LinearDims& dims) {
  if (dims.a_column == 1) return dims.b.n <= 256 && dims.b.k <= 768 && dims.a_row % 1024 != 0;
  return dims.b.n <= 128 && dims.a_column % 512 != 0;
}

// m and n are positive; no threads stand for the calling one.
Plan make_plan(const LinearDims& dims, int threads) {
  Plan plan{};
  const bool bf16 = dims.b.dtype == DType::kBF16;
  plan.pairs = bf16 && simd::uses_bf16_dot();
  const bool padded = dims.b.padded_k() != dims.b.k;
  plan.packed = plan.pairs || padded || (dims.m > 1 && (bf16 || !read_in_place(dims)));
  plan.units = plan.pairs ? dims.b.padded_k() / 2 : dims.b.padded_k();
  plan.tiles = ceil_div(dims.m, kTileRows);
  plan.by_rows = plan.pairs && dims.a_column == 1 && dims.m < 4;
  plan.rows = ceil_div(dims.m, plan.tiles);
  plan.widened = bf16 && !plan.pairs && plan.tiles > kFewTiles;
  const int64_t most = plan.widened ? kWidenedUnits : kBlockUnits;
  const int64_t blocks = plan.tiles <= 1 ? 1 : std::max<int64_t>(1, ceil_div(plan.units, most));
  plan.block = std::max<int64_t>(2, ceil_div(ceil_div(plan.units, blocks), 2) * 2);

  const int64_t tile_bytes = std::max<int64_t>(1, plan.rows * plan.block * 4);
  const int64_t most_tiles = std::max<int64_t>(1, kSlabBytes / tile_bytes);
  plan.by_slab = plan.packed && threads > 0 && plan.tiles >= 2 * kSlabTiles * threads;
  if (plan.by_slab) {
    const int64_t wanted = std::max(kSlabTiles, ceil_div(plan.tiles, 4 * threads));
    plan.slabs = ceil_div(ceil_div(plan.tiles, std::min(wanted, most_tiles)), threads) * threads;
    plan.slab = ceil_div(plan.tiles, plan.slabs);
    plan.slabs = ceil_div(plan.tiles, plan.slab);
    plan.group = dims.b.panels();
    plan.groups = 1;
    return plan;
  }
  plan.slabs = ceil_div(plan.tiles, most_tiles);
  plan.slab = ceil_div(plan.tiles, plan.slabs);

  // Enough tasks to even out the end of the loop; none so small that starting it costs more.
  const int64_t panels = dims.b.panels();
  const int64_t wanted = ceil_div(8 * threads, plan.slabs);
  const int64_t panel_bytes = std::max<int64_t>(1, static_cast<int64_t>(dims.b.panel_bytes()));
  const int64_t smallest = ceil_div(int64_t{64} << 10, panel_bytes * plan.slab * plan.rows);
  const int64_t largest = std::max<int64_t>(1, (int64_t{512} << 10) / panel_bytes);
  plan.group = threads <= 1 ? panels : ceil_div(panels, wanted);
  if (plan.slabs <= 1) plan.group = std::min(plan.group, largest);
  plan.group = std::min(panels, std::max(plan.group, smallest));
  plan.groups = ceil_div(panels, plan.group);
  return plan;
}

// Units [u0, u1) of tiles [t0, t1) of a.
struct Slab {
  int64_t t0, t1, u0, u1;
  int64_t units() const { return u1 - u0; }
};

// Rounds `rows` rows of a to pairs and turns them into columns, a block at a time.
void pack_rows_as_pairs(const LinearDims& dims, const Plan& plan, const Slab& slab, int64_t rows,
                        const float* a, float* out) {
  constexpr int64_t kBlock = 256;
  alignas(64) float pairs[kTileRows * kBlock / 2];
  const int64_t end = std::min(dims.b.k, 2 * slab.u1);
  for (int64_t p0 = 2 * slab.u0; p0 < end; p0 += kBlock) {
    const int64_t count = std::min(kBlock, end - p0), u = p0 / 2 - slab.u0;
    for (int64_t i = 0; i < rows; ++i) {
      float* line = plan.by_rows ? out + i * slab.units() + u : pairs + i * kBlock / 2;
      auto* to = reinterpret_cast<BF16*>(line);
      round_to_bf16(count, a + i * dims.a_row + p0, to);
      if (count % 2 != 0) to[count] = BF16{};
    }
    if (plan.by_rows) continue;
    simd::transpose(rows, ceil_div(count, 2), pairs, kBlock / 2, out + u * plan.rows, plan.rows);
  }
}

// One tile of an a whose rows are contiguous.
void pack_rows(const LinearDims& dims, const Plan& plan, const Slab& slab, int64_t rows,
               const float* a, float* out) {
  if (plan.pairs) {
    pack_rows_as_pairs(dims, plan, slab, rows, a, out);
    return;
  }
  const int64_t there = std::min(dims.b.k, slab.u1) - slab.u0;
  simd::transpose(rows, there, a + slab.u0, dims.a_row, out, plan.rows);
  for (int64_t u = there; u < slab.units(); ++u) std::fill_n(out + u * plan.rows, rows, 0.0f);
}

// Tiles of an a whose columns are contiguous (a transposed one): side by side, so that the whole
// cache line of a column is used while it is there.
void pack_columns(const LinearDims& dims, const Plan& plan, const Slab& slab, const float* a,
                  float* tiles) {
  const int64_t k = dims.b.k, step = plan.pairs ? 2 : 1;
  const float zeros[kTileRows] = {};
  for (int64_t u = 0; u < slab.units(); ++u) {
    const int64_t p = (slab.u0 + u) * step;
    for (int64_t t = slab.t0; t < slab.t1; ++t) {
      const int64_t row0 = t * plan.rows, rows = std::min(plan.rows, dims.m - row0);
      float* out = tiles + ((t - slab.t0) * slab.units() + u) * plan.rows;
      const float* x = p < k ? a + p * dims.a_column + row0 : zeros;
      if (!plan.pairs) {
        std::copy_n(x, rows, out);
      } else {
        const float* next = p + 1 < k ? x + dims.a_column : zeros;
        round_pairs_to_bf16(rows, x, next, reinterpret_cast<BF16*>(out));
      }
    }
  }
}

// a as [tile][unit][rows].
void pack_slab(const LinearDims& dims, const Plan& plan, const Slab& slab, const float* a,
               float* tiles) {
  if (dims.a_column != 1) {
    pack_columns(dims, plan, slab, a, tiles);
    return;
  }
  for (int64_t t = slab.t0; t < slab.t1; ++t, tiles += plan.rows * slab.units()) {
    const int64_t row0 = t * plan.rows;
    pack_rows(dims, plan, slab, std::min(plan.rows, dims.m - row0), a + row0 * dims.a_row, tiles);
  }
}

// Stands for the pool where the calling thread does it all.
struct OneThread {
  static int size() { return 0; }
  template <class Body>
  void parallel_for(int64_t count, int64_t, Body&& body) const {
    if (count > 0) body(0, count, 0);
  }
};

template <class Threads>
void pack_whole(Threads& threads, const LinearDims& dims, const Plan& plan, const float* a,
                float* tiles) {
  const int64_t tile_units = plan.rows * plan.units, enough = dims.a_column == 1 ? 1 : 8;
  const int64_t grain = std::max(enough, (1 << 15) / std::max<int64_t>(1, tile_units));
  threads.parallel_for(plan.tiles, grain, [&](int64_t begin, int64_t end, int) {
    pack_slab(dims, plan, {begin, end, 0, plan.units}, a, tiles + begin * tile_units);
  });
}

struct Operands {
  const float* a;  // if packed, tiles of the slab
  Slab slab;
  const std::byte* b;
  const float* start;
  float* c;
};

// Units [u0, u1) of a panel of b, in float32 or as pairs of bfloat16.
struct PanelBlock {
  int64_t panel, u0, u1;
  const std::byte* packed;  // where it lies
  const void* b;            // that, or what it was widened into
  bool floats;
};

PanelBlock panel_block(const LinearDims& dims, const Plan& plan, const std::byte* b, int64_t panel,
                       int64_t u0, float* buffer) {
  const int64_t u1 = std::min(plan.units, u0 + plan.block);
  const int64_t unit_bytes = kPanel * static_cast<int64_t>(size_of(dims.b.dtype));
  const std::byte* packed = b + static_cast<size_t>(panel) * dims.b.panel_bytes() +
                            u0 * unit_bytes * (plan.pairs ? 2 : 1);
  if (!plan.widened) return {panel, u0, u1, packed, packed, dims.b.dtype == DType::kF32};
  widen_panel((u1 - u0) / 2, packed, buffer);
  return {panel, u0, u1, packed, buffer, true};
}

void run_tile(const LinearDims& dims, const Plan& plan, const Operands& x, int64_t tile,
              const PanelBlock& block, const std::byte* ahead) {
  const int64_t row0 = tile * plan.rows, column0 = block.panel * kPanel, u0 = block.u0;
  const int64_t rows = std::min(plan.rows, dims.m - row0);
  const int64_t width = std::min(kPanel, dims.b.n - column0);
  const int64_t a_row = !plan.packed ? dims.a_row : plan.by_rows ? plan.units : 1;
  const int64_t a_col = !plan.packed ? dims.a_column : plan.by_rows ? 1 : plan.rows;
  const float* a = !plan.packed ? x.a + row0 * a_row + u0 * a_col
                                : x.a + (tile - x.slab.t0) * x.slab.units() * plan.rows +
                                      (u0 - x.slab.u0) * a_col;
  float* c = x.c + row0 * dims.c_row + column0;
  const float* start = u0 > 0               ? c
                       : x.start == nullptr ? nullptr
                                            : x.start + row0 * dims.start_row + column0;
  const int64_t start_row = u0 > 0 ? dims.c_row : dims.start_row;
  if (block.floats) {
    const simd::GemmDims gemm{.m = rows,
                              .n = width,
                              .k = block.u1 - u0,
                              .a_row = rows == 1 ? 1 : a_row,
                              .a_col = a_col,
                              .b_row = kPanel,
                              .c_row = dims.c_row,
                              .start_row = start_row,
                              .ahead = ahead,
                              .ahead_row = kPanel * static_cast<int64_t>(size_of(dims.b.dtype))};
    simd::gemm(gemm, a, static_cast<const float*>(block.b), start, c);
    return;
  }
  const Bf16TileDims gemm{.m = rows,
                          .n = width,
                          .k = block.u1 - u0,
                          .a_row = rows == 1 ? 1 : a_row,
                          .a_col = a_col,
                          .c_row = dims.c_row,
                          .start_row = start_row,
                          .ahead = ahead};
  bf16_tile(gemm, a, block.b, start, c);
}

// What a tile fetches. Few tiles wait for memory: the first fetches what it will read itself. While
// many meet a panel, memory is idle: the first fetches the next one.
const std::byte* ahead_of(const LinearDims& dims, const PanelBlock& block, int64_t panels_left,
                          int64_t tile, int64_t tiles) {
  if (tile > 0) return nullptr;
  if (tiles <= kFewTiles) return block.packed + kBytesAhead;
  return panels_left < 2 ? nullptr : block.packed + dims.b.panel_bytes();
}

// One slab of a against a group of panels.
void run_task(const LinearDims& dims, const Plan& plan, Operands x, int64_t task, float* packed) {
  alignas(64) float buffer[kWidenedUnits * kPanel];
  const float* const a = x.a;
  const int64_t tile0 = task / plan.groups * plan.slab;
  const int64_t tile1 = std::min(plan.tiles, tile0 + plan.slab);
  const int64_t panel0 = task % plan.groups * plan.group;
  const int64_t panel1 = std::min(dims.b.panels(), panel0 + plan.group);
  int64_t u0 = 0;
  do {
    if (plan.by_slab) {
      x.slab = {tile0, tile1, u0, std::min(plan.units, u0 + plan.block)};
      pack_slab(dims, plan, x.slab, a, packed);
      x.a = packed;
    }
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const PanelBlock block = panel_block(dims, plan, x.b, panel, u0, buffer);
      for (int64_t tile = tile0; tile < tile1; ++tile) {
        run_tile(dims, plan, x, tile, block,
                 ahead_of(dims, block, panel1 - panel, tile - tile0, tile1 - tile0));
      }
    }
    u0 += plan.block;
  } while (u0 < plan.units);
}

// Floats of scratch for one slab, or for all of a.
int64_t packed_floats(const Plan& plan) {
  if (!plan.packed) return 0;
  return plan.by_slab ? plan.slab * plan.rows * plan.block : plan.tiles * plan.rows * plan.units;
}

template <class Threads>
void product(Threads& threads, const LinearDims& dims, const float* a, const void* b,
             const float* start, float* c, void* scratch) {
  if (dims.m == 0 || dims.b.n == 0) return;
  const Plan plan = make_plan(dims, threads.size());
  auto* tiles = static_cast<float*>(scratch);
  if (plan.packed && !plan.by_slab) {
    pack_whole(threads, dims, plan, a, tiles);
    a = tiles;
  }
  const Operands x{a, {0, plan.tiles, 0, plan.units}, static_cast<const std::byte*>(b), start, c};
  const int64_t size = plan.by_slab ? packed_floats(plan) : 0;  // to a worker
  // Tasks of one slab follow each other, so that a worker tends to keep its slab.
  threads.parallel_for(plan.slabs * plan.groups, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t task = begin; task < end; ++task) {
      run_task(dims, plan, x, task, tiles + worker * size);
    }
  });
}

}  // namespace

size_t linear_scratch_bytes(const LinearDims& dims, int threads) {
  if (dims.m == 0 || dims.b.n == 0) return 0;
  Plan plan = make_plan(dims, threads);
  if (threads == 0) plan.packed = true;  // it may be, at a smaller size or with other strides
  return static_cast<size_t>(packed_floats(plan) * (plan.by_slab ? threads : 1)) * sizeof(float);
}

void linear(ThreadPool& threads, const LinearDims& dims, const float* a, const void* b,
            const float* start, float* c, void* scratch) {
  product(threads, dims, a, b, start, c, scratch);
}

void linear_on_thread(const LinearDims& dims, const float* a, const void* b, const float* start,
                      float* c, void* scratch) {
  OneThread threads;
  product(threads, dims, a, b, start, c, scratch);
}

void column_sum(ThreadPool& threads, int64_t rows, int64_t columns, int64_t x_row, const float* x,
                float* y) {
  threads.parallel_for(columns, 256, [&](int64_t begin, int64_t end) {
    std::fill(y + begin, y + end, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = x + i * x_row;
      for (int64_t j = begin; j < end; ++j) y[j] += from[j];
    }
  });
}

}  // namespace braid::cpu
