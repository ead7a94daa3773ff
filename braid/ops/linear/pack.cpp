#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstring>

#include "braid/core/thread_pool.h"
#include "braid/ops/linear/bf16.h"
#include "braid/ops/linear/kernels.h"
#include "braid/simd/gemm.h"

namespace braid::cpu {
namespace {

constexpr int64_t kPanel = PackedMatrix::kPanel;
constexpr int64_t kBlock = 128;  // inputs at a time: 16 KiB of staging

bool all_finite(const float* x, int64_t count) {
  uint32_t worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    worst = std::max(worst, bits & 0x7fffffffu);
  }
  return worst < 0x7f800000u;
}

// Staging holds rows of the source, `stage` (kPanel, kBlock); the panel wants them as columns of
// 4-byte units: a float, or a pair of bfloat16.
void store_block(const PackedMatrix& to, const float* stage, int64_t p0, int64_t count,
                 std::byte* panel) {
  auto* units = reinterpret_cast<float*>(panel);
  if (to.dtype == DType::kF32) {
    simd::transpose(kPanel, count, stage, kBlock, units + p0 * kPanel, kPanel);
    return;
  }
  alignas(64) float pairs[kPanel * kBlock / 2];
  const int64_t even = (count + 1) / 2 * 2;
  for (int64_t i = 0; i < kPanel; ++i) {
    round_to_bf16(even, stage + i * kBlock, reinterpret_cast<BF16*>(pairs + i * kBlock / 2));
  }
  simd::transpose(kPanel, even / 2, pairs, kBlock / 2, units + p0 / 2 * kPanel, kPanel);
}

// Source rows are contiguous: they become columns of the panel.
bool pack_rows(const PackDims& dims, int64_t row0, const std::byte* from, std::byte* panel) {
  alignas(64) float stage[kPanel * kBlock];
  const int64_t rows = std::min(kPanel, dims.to.n - row0);
  const auto size = static_cast<int64_t>(size_of(dims.from));
  bool finite = true;
  for (int64_t p0 = 0; p0 < dims.to.k; p0 += kBlock) {
    const int64_t count = std::min(kBlock, dims.to.k - p0);
    std::fill(stage, stage + kPanel * kBlock, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
      float* to = stage + i * kBlock;
      widen_row(dims.from, from + ((row0 + i) * dims.row + p0) * size, count, to);
      finite &= all_finite(to, count);
    }
    store_block(dims.to, stage, p0, count, panel);
  }
  return finite;
}

// Source columns are contiguous: 32 of them are a row of the panel already.
bool pack_columns(const PackDims& dims, int64_t row0, const float* from, std::byte* panel) {
  const int64_t rows = std::min(kPanel, dims.to.n - row0);
  bool finite = true;
  alignas(64) float pair[2][kPanel] = {};
  for (int64_t p = 0; p < dims.to.k; ++p) {
    const float* x = from + row0 + p * dims.column;
    finite &= all_finite(x, rows);
    if (dims.to.dtype == DType::kF32) {
      float* y = reinterpret_cast<float*>(panel) + p * kPanel;
      std::fill(std::copy_n(x, rows, y), y + kPanel, 0.0f);
      continue;
    }
    std::copy_n(x, rows, pair[p % 2]);
    if (p % 2 == 0 && p + 1 < dims.to.k) continue;
    if (p % 2 == 0) std::fill_n(pair[1], kPanel, 0.0f);
    round_pairs_to_bf16(kPanel, pair[0], pair[1],
                        reinterpret_cast<BF16*>(panel) + p / 2 * 2 * kPanel);
  }
  return finite;
}

}  // namespace

void widen_row(DType from, const void* row, int64_t count, float* y) {
  const auto* x = static_cast<const std::byte*>(row);  // of a file: at any address
  if (from == DType::kF32) {
    std::memcpy(y, x, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t p = 0; p < count; ++p) {
    uint16_t bits;
    std::memcpy(&bits, x + 2 * p, sizeof(bits));
    y[p] = from == DType::kBF16 ? to_float(BF16{bits}) : half_to_float(bits);
  }
}

bool pack_panels(const PackDims& dims, int64_t begin, int64_t end, const void* from, void* to) {
  bool finite = true;
  for (int64_t panel = begin; panel < end; ++panel) {
    auto* out = static_cast<std::byte*>(to) + static_cast<size_t>(panel) * dims.to.panel_bytes();
    if (dims.column == 1) {
      finite &= pack_rows(dims, panel * kPanel, static_cast<const std::byte*>(from), out);
    } else {
      assert(dims.row == 1 && dims.from == DType::kF32);
      finite &= pack_columns(dims, panel * kPanel, static_cast<const float*>(from), out);
    }
  }
  return finite;
}

bool pack(ThreadPool& threads, const PackDims& dims, const void* from, void* to) {
  std::atomic<bool> finite{true};
  const int64_t grain =
      std::max<int64_t>(1, (1 << 16) / (kPanel * std::max<int64_t>(1, dims.to.k)));
  threads.parallel_for(dims.to.panels(), grain, [&](int64_t begin, int64_t end) {
    if (!pack_panels(dims, begin, end, from, to)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

void unpack_row(const PackedMatrix& matrix, const void* data, int64_t row, float* out) {
  const auto* panel = static_cast<const std::byte*>(data) +
                      static_cast<size_t>(row / kPanel) * matrix.panel_bytes();
  const int64_t lane = row % kPanel;
  if (matrix.dtype == DType::kF32) {
    const auto* x = reinterpret_cast<const float*>(panel) + lane;
    for (int64_t p = 0; p < matrix.k; ++p) out[p] = x[p * kPanel];
    return;
  }
  const auto* x = reinterpret_cast<const BF16*>(panel) + 2 * lane;
  for (int64_t p = 0; p < matrix.k; ++p) out[p] = to_float(x[p / 2 * 2 * kPanel + p % 2]);
}

}  // namespace braid::cpu
