#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/latent_attention/kernels.h"
#include "braid/ops/linear/bf16.h"
#include "braid/simd/bf16_dot.h"
#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

constexpr int64_t kPanel = PackedMatrix::kPanel;
constexpr int64_t kTileRows = 14;
constexpr int64_t kSlabTiles = 8;  // a task: tiles that meet a panel while it is near
constexpr int64_t kSlabRows = kTileRows * kSlabTiles;

bool in_pairs(const HeadProductDims& dims) {
  return dims.b.dtype == DType::kBF16 && simd::uses_bf16_dot();
}

// Units along k: pairs, or floats.
int64_t units(const HeadProductDims& dims) { return in_pairs(dims) ? dims.k / 2 : dims.k; }

// Up to a tile of rows turned into columns, out[unit][rows]; in pairs they are rounded.
void pack_tile(const HeadProductDims& dims, int64_t rows, const float* a, float* out) {
  if (!in_pairs(dims)) {
    simd::transpose(rows, dims.k, a, dims.a_row, out, rows);
    return;
  }
  constexpr int64_t kBlock = 256;
  alignas(64) float pairs[kTileRows * kBlock / 2];
  for (int64_t p = 0; p < dims.k; p += kBlock) {
    const int64_t count = std::min(kBlock, dims.k - p);
    for (int64_t i = 0; i < rows; ++i) {
      round_to_bf16(count, a + i * dims.a_row + p, reinterpret_cast<BF16*>(pairs + i * kBlock / 2));
    }
    simd::transpose(rows, count / 2, pairs, kBlock / 2, out + p / 2 * rows, rows);
  }
}

// c (rows, width) <- a tile times one panel of b from `column` on.
void tile_product(const HeadProductDims& dims, int64_t rows, const float* a, const std::byte* panel,
                  int64_t column, int64_t width, float* c, int64_t c_row) {
  const std::byte* b = panel + column * kPanel * static_cast<int64_t>(size_of(dims.b.dtype));
  if (dims.b.dtype == DType::kF32) {
    simd::gemm({.m = rows,
                .n = width,
                .k = dims.k,
                .a_row = 1,
                .a_col = rows,
                .b_row = kPanel,
                .c_row = c_row},
               a, reinterpret_cast<const float*>(b), nullptr, c);
    return;
  }
  bf16_tile({.m = rows,
             .n = width,
             .k = units(dims),
             .a_row = 1,
             .a_col = rows,
             .c_row = c_row,
             .start_row = 0,
             .ahead = nullptr},
            a, b, nullptr, c);
}

// One head's product for the rows of a slab. A panel that the head shares with its neighbours is
// multiplied whole, and what belongs to the head is kept.
void slab_product(const HeadProductDims& dims, int64_t head, int64_t row0, int64_t rows,
                  const float* a, const std::byte* b, float* c, float* tiles) {
  const int64_t first = dims.row + head * dims.row_step, last = first + dims.n;
  const int64_t column = dims.column + head * dims.column_step, step = kTileRows * units(dims);
  a += row0 * dims.a_row + head * dims.a_head;
  c += row0 * dims.c_row + head * dims.c_head;
  for (int64_t i = 0; i < rows; i += kTileRows) {
    pack_tile(dims, std::min(kTileRows, rows - i), a + i * dims.a_row,
              tiles + i / kTileRows * step);
  }
  for (int64_t panel = first / kPanel; panel * kPanel < last; ++panel) {
    const std::byte* from = b + static_cast<size_t>(panel) * dims.b.panel_bytes();
    const int64_t lane0 = panel * kPanel, width = std::min(kPanel, dims.b.n - lane0);
    const int64_t begin = std::max(first, lane0), end = std::min(last, lane0 + width);
    const bool own = begin == lane0 && end == lane0 + width;
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t count = std::min(kTileRows, rows - i);
      const float* tile = tiles + i / kTileRows * step;
      float* to = c + i * dims.c_row + begin - first;
      if (own) {
        tile_product(dims, count, tile, from, column, width, to, dims.c_row);
        continue;
      }
      alignas(64) float shared[kTileRows * kPanel];
      tile_product(dims, count, tile, from, column, width, shared, kPanel);
      for (int64_t r = 0; r < count; ++r) {
        std::copy_n(shared + r * kPanel + begin - lane0, end - begin, to + r * dims.c_row);
      }
    }
  }
  for (int64_t i = 0; i < rows && dims.tail > 0; ++i) {
    std::copy_n(a + i * dims.a_row + dims.k, dims.tail, c + i * dims.c_row + dims.n);
  }
}

}  // namespace

int64_t head_products_scratch(const HeadProductDims& dims) {
  return std::min(dims.rows, kSlabRows) * dims.k + kTileRows * dims.k;
}

void head_products(ThreadPool& threads, const HeadProductDims& dims, const float* a, const void* b,
                   float* c, float* scratch) {
  const int64_t slabs = (dims.rows + kSlabRows - 1) / kSlabRows;
  const int64_t work = std::max<int64_t>(1, std::min(dims.rows, kSlabRows) * dims.n * dims.k);
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / work);
  const int64_t per_worker = head_products_scratch(dims);
  // Slabs of one head follow each other: its part of b stays near.
  threads.parallel_for(dims.heads * slabs, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / slabs, row0 = task % slabs * kSlabRows;
      slab_product(dims, head, row0, std::min(kSlabRows, dims.rows - row0), a,
                   static_cast<const std::byte*>(b), c, scratch + worker * per_worker);
    }
  });
}

}  // namespace braid::cpu
