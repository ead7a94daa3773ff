// The scan read along the state's columns: sums over the rows of all heads of a group, for the
// gradients of B and C. Each column is independent, so a task is a few columns of a group.

#include <algorithm>
#include <array>

#include "braid/core/thread_pool.h"
#include "braid/ops/ssd/kernels.h"
#include "braid/ops/ssd/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ssd/columns_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/scan-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// Rows of (head, column) pairs of one column block through one block of tokens.
template <int kRows, int kVectors>
HWY_INLINE void column_tile(int64_t tokens, int64_t k_stride, const float* k, const float* q,
                            const float* b, const float* decay, float* state, float* z) {
  const D d;
  const int64_t width = kVectors * lanes();
  V s[kRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) s[r][v] = hn::Load(d, state + r * width + v * lanes());
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const V decay_t = hn::Set(d, decay[t]);
    V bv[kVectors], zv[kVectors];
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      bv[v] = hn::Load(d, b + t * width + v * lanes());
      zv[v] = hn::Load(d, z + t * width + v * lanes());
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const V kr = hn::Set(d, k[t * k_stride + r]), qr = hn::Set(d, q[t * k_stride + r]);
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) {
        s[r][v] = hn::MulAdd(kr, bv[v], hn::Mul(decay_t, s[r][v]));
        zv[v] = hn::MulAdd(qr, s[r][v], zv[v]);
      }
    }
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) hn::Store(zv[v], d, z + t * width + v * lanes());
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) hn::Store(s[r][v], d, state + r * width + v * lanes());
  }
}

// Columns [n0, n0 + kVectors lanes) of the states of all heads of group g through sequence s.
template <int kVectors>
HWY_NOINLINE void scan_columns(const ColumnScan& a, int64_t s, int64_t g, int64_t n0,
                               const float* h0, float* scratch) {
  const SsdDims& dims = a.dims;
  const int64_t width = kVectors * lanes(), rows = dims.head_dim, rows_padded = pad(rows);
  const int64_t heads = dims.heads_per_group(), column_count = dims.state - n0;
  float* k = scratch;
  float* q = k + kBlockTokens * rows_padded;
  float* b = q + kBlockTokens * rows_padded;
  float* z = b + kBlockTokens * width;
  float* state = z + kBlockTokens * width;  // (heads, P, width)
  for (int64_t i = 0; i < heads * rows; ++i) {
    for (int64_t v = 0; v < width; v += lanes()) {
      const float* from =
          h0 == nullptr ? nullptr : h0 + (g * heads * rows + i) * dims.state + n0 + v;
      const bool zero = from == nullptr || v >= column_count;
      hn::Store(zero ? hn::Zero(D()) : load(from, column_count - v), D(), state + i * width + v);
    }
  }
  Block block{.first = dims.offsets[s],
              .length = dims.offsets[s + 1] - dims.offsets[s],
              .begin = 0,
              .count = 0,
              .reverse = a.scan.reverse};
  std::array<float, kBlockTokens> decay;
  for (; block.begin < block.length; block.begin += kBlockTokens) {
    block.count = std::min(kBlockTokens, block.length - block.begin);
    for (int64_t t = 0; t < block.count; ++t) {
      const float* from = a.b + block.row(t) * a.scan.b_stride + g * dims.state + n0;
      std::fill_n(b + t * width, width, 0.0f);
      copy_scaled(from, std::min(width, column_count), 1.0f, b + t * width);
      std::fill_n(z + t * width, width, 0.0f);
    }
    for (int64_t j = 0; j < heads; ++j) {
      const int64_t h = g * heads + j;
      for (int64_t t = 0; t < block.count; ++t) {
        const int64_t row = block.row(t), cell = row * dims.heads + h;
        const float* ks = a.scan.k_scale;
        const float* qs = a.scan.q_scale;
        copy_scaled(a.k + row * a.scan.k_stride + h * rows, rows, ks ? ks[cell] : 1.0f,
                    k + t * rows_padded);
        copy_scaled(a.q + row * a.scan.q_stride + h * rows, rows, qs ? qs[cell] : 1.0f,
                    q + t * rows_padded);
        decay[static_cast<size_t>(t)] = block.decay(a.decay, dims.heads, h, t);
      }
      constexpr int kRows = kManyRegisters ? 8 : 4;
      float* head_state = state + j * rows * width;
      int64_t r = 0;
      for (; r + kRows <= rows; r += kRows) {
        column_tile<kRows, kVectors>(block.count, rows_padded, k + r, q + r, b, decay.data(),
                                     head_state + r * width, z);
      }
      for (; r < rows; ++r) {
        column_tile<1, kVectors>(block.count, rows_padded, k + r, q + r, b, decay.data(),
                                 head_state + r * width, z);
      }
    }
    for (int64_t t = 0; t < block.count; ++t) {
      float* to = a.z + (block.row(t) * dims.groups + g) * dims.state + n0;
      for (int64_t v = 0; v < std::min(width, column_count); v += lanes()) {
        store(hn::Load(D(), z + t * width + v), to + v, column_count - v);
      }
    }
  }
}

void scan_two_vectors(const ColumnScan& a, int64_t s, int64_t g, int64_t block, const float* h0,
                      float* scratch) {
  scan_columns<2>(a, s, g, block * 2 * lanes(), h0, scratch);
}

int64_t column_blocks(int64_t state) { return (state + 2 * lanes() - 1) / (2 * lanes()); }

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(scan_two_vectors);
HWY_EXPORT(column_blocks);

void ssd_scan_columns(ThreadPool& threads, const SsdDims& dims, const SsdColumns& scan,
                      const float* k, const float* q, const float* b, const float* decay,
                      const float* const* h0, float* scratch, float* z) {
  const ColumnScan columns{dims, scan, k, q, b, decay, z};
  const int64_t blocks = HWY_DYNAMIC_DISPATCH(column_blocks)(dims.state);
  const int64_t worker_scratch = ssd_scan_scratch(dims);
  threads.parallel_for(dims.sequences * dims.groups * blocks, 1,
                       [&](int64_t begin, int64_t end, int worker) {
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t s = i / blocks / dims.groups;
                           HWY_DYNAMIC_DISPATCH(scan_two_vectors)
                           (columns, s, i / blocks % dims.groups, i % blocks, h0[s],
                            scratch + worker * worker_scratch);
                         }
                       });
}

}  // namespace braid::cpu
#endif
