// The chunked form between chunks: what each chunk adds to the state, and the states at its ends.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/ssd/kernels.h"
#include "braid/ops/ssd/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ssd/chunk_states_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

void chunk_sums(const ChunkSums& a, int64_t index, int64_t h, float* scratch) {
  const SsdDims& dims = a.dims.base;
  const SsdChunk& cell = a.dims.cells[index];
  const int64_t q = round_up(a.dims.chunk, kMaxLanes);
  float* scaled = scratch + 4 * q;  // (Q, P)
  Decays decays(scratch, q);
  decays.set(dims, cell, h, a.log_decay);
  const int64_t g = h / dims.heads_per_group(), p = dims.head_dim, n = dims.state;
  float* factor = decays.high;  // not needed any more
  for (int64_t t = 0; t < cell.count; ++t) {
    const float dt = a.dt == nullptr ? 1.0f : a.dt[(cell.begin + t) * dims.heads + h];
    factor[t] = a.reverse ? decays.from_start[t] : decays.to_end[t] * dt;
  }
  scale_rows(cell.count, p, factor, a.x + cell.begin * dims.x_stride + h * p, dims.x_stride, scaled,
             p);
  gemm(
      {.m = p, .n = n, .k = cell.count, .a_row = 1, .a_col = p, .b_row = dims.b_stride, .c_row = n},
      scaled, a.b + cell.begin * dims.b_stride + g * n, nullptr,
      a.sums + (index * dims.heads + h) * p * n);
  a.totals[index * dims.heads + h] = decays.total;
}

// Head h of sequence s, a few rows of the state at a time, which stay in the first-level cache.
void chunk_pass(const ChunkPass& a, int64_t s, int64_t h, const float* h0, float* ht) {
  const D d;
  const SsdDims& dims = a.dims.base;
  const int64_t size = dims.head_dim * dims.state, first = a.dims.firsts[s];
  const int64_t count = a.dims.firsts[s + 1] - first;
  constexpr int64_t kPart = 1024;
  HWY_ALIGN float state[kPart];
  for (int64_t i0 = 0; i0 < size; i0 += kPart) {
    const int64_t n = std::min(kPart, size - i0), at = h * size + i0;
    if (h0 == nullptr) {
      std::fill_n(state, n, 0.0f);
    } else {
      std::copy_n(h0 + at, n, state);
    }
    for (int64_t j = 0; j < count; ++j) {
      const int64_t cell = first + (a.reverse ? count - 1 - j : j);
      float* sums = a.sums + cell * dims.heads * size + at;
      const V total = hn::Set(d, a.totals[cell * dims.heads + h]);
      sv::for_each_vector(static_cast<size_t>(n), [&](auto access, size_t i) {
        const V before = access.load(state + i);
        access.store(hn::MulAdd(total, before, access.load(sums + i)), state + i);
        access.store(before, sums + i);
      });
    }
    if (ht != nullptr) std::copy_n(state, n, ht + at);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(chunk_sums);
HWY_EXPORT(chunk_pass);

void ssd_chunk_sums(ThreadPool& threads, const SsdChunkDims& dims, bool reverse, const float* x,
                    const float* dt, const float* b, const float* log_decay, float* scratch,
                    float* sums, float* totals) {
  const ChunkSums a{dims, reverse, x, dt, b, log_decay, sums, totals};
  const int64_t heads = dims.base.heads, worker_scratch = ssd_chunk_scratch(dims);
  threads.parallel_for(dims.chunks * heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(chunk_sums)
      (a, i / heads, i % heads, scratch + worker * worker_scratch);
    }
  });
}

void ssd_chunk_pass(ThreadPool& threads, const SsdChunkDims& dims, bool reverse,
                    const float* totals, const float* const* h0, float* const* ht, float* sums) {
  const ChunkPass a{dims, reverse, totals, sums};
  const int64_t heads = dims.base.heads;
  threads.parallel_for(dims.base.sequences * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / heads;
      HWY_DYNAMIC_DISPATCH(chunk_pass)(a, s, i % heads, h0[s], ht[s]);
    }
  });
}

}  // namespace braid::cpu
#endif
