// The chunked form: inside a chunk of Q tokens the recurrence is a masked product of matrices, and
// only the states between chunks go step by step. README.md derives what is computed here.
//
// Per chunk and head, in multiply-adds: forward 2 Q P N + Q^2 P / 2, vjp 5 Q P N + Q^2 P.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/ssd/kernels.h"
#include "braid/ops/ssd/scan.h"
#include "braid/simd/gemm.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ssd/chunked_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// One worker's matrices; see ssd_chunk_scratch. Q rows of (Q) or (P), N rows of (Q) or (P).
struct Matrices {
  int64_t q, p;  // row strides
  float *decays, *bt, *cb, *decay, *m, *w, *u, *scaled, *ut, *transposed;

  Matrices(const SsdChunkDims& dims, float* base)
      : q(round_up(dims.chunk, kMaxLanes)), p(round_up(dims.base.head_dim, kMaxLanes)) {
    decays = base;
    bt = decays + 4 * q;
    cb = bt + dims.base.state * q;
    decay = cb + q * q;
    m = decay + q * q;
    w = m + q * q;
    u = w + q * q;
    scaled = u + q * p;
    ut = scaled + q * p;
    transposed = ut + dims.base.head_dim * q;
  }
};

// B^T and C B^T of one group.
void chunk_scores(const ChunkGroup& a, const SsdChunk& cell, int64_t g, const Matrices& at) {
  const SsdDims& dims = a.dims.base;
  const int64_t n = dims.state;
  simd::transpose(cell.count, n, a.b + cell.begin * dims.b_stride + g * n, dims.b_stride, at.bt,
                  at.q);
  gemm({.m = cell.count,
        .n = cell.count,
        .k = n,
        .a_row = dims.c_stride,
        .a_col = 1,
        .b_row = at.q,
        .c_row = at.q},
       a.c + cell.begin * dims.c_stride + g * n, at.bt, nullptr, at.cb);
}

// u <- dt x of one head, (Q, P).
void chunk_inputs(const ChunkGroup& a, const SsdChunk& cell, int64_t h, const Matrices& at,
                  float* factor) {
  const SsdDims& dims = a.dims.base;
  for (int64_t t = 0; t < cell.count; ++t) {
    factor[t] = a.dt == nullptr ? 1.0f : a.dt[(cell.begin + t) * dims.heads + h];
  }
  scale_rows(cell.count, dims.head_dim, factor,
             a.x + cell.begin * dims.x_stride + h * dims.head_dim, dims.x_stride, at.u, at.p);
}

void chunk_outputs(const ChunkGroup& a, int64_t index, int64_t g, float* scratch) {
  const D d;
  const SsdDims& dims = a.dims.base;
  const SsdChunk& cell = a.dims.cells[index];
  const Matrices at(a.dims, scratch);
  const int64_t p = dims.head_dim, n = dims.state, count = cell.count;
  Decays decays(at.decays, at.q);
  chunk_scores(a, cell, g, at);
  for (int64_t h = g * dims.heads_per_group(); h < (g + 1) * dims.heads_per_group(); ++h) {
    decays.set(dims, cell, h, a.log_decay);
    mask(count, at.q, decays, at.cb, at.decay, at.m);
    chunk_inputs(a, cell, h, at, decays.high);
    // What the state at the start gives, then what the tokens of the chunk give each other.
    simd::transpose(p, n, a.starts + (index * dims.heads + h) * p * n, n, at.transposed, at.p);
    gemm({.m = count,
          .n = p,
          .k = n,
          .a_row = dims.c_stride,
          .a_col = 1,
          .b_row = at.p,
          .c_row = at.p},
         a.c + cell.begin * dims.c_stride + g * n, at.transposed, nullptr, at.scaled);
    scale_rows(count, p, decays.from_start, at.scaled, at.p, at.scaled, at.p);
    lower_times(count, p, at.m, at.q, at.u, at.p, at.scaled, at.p);
    const V skip = hn::Set(d, a.skip == nullptr ? 0.0f : a.skip[h]);
    for (int64_t t = 0; t < count; ++t) {
      const float* x = a.x + (cell.begin + t) * dims.x_stride + h * p;
      float* y = a.y + (cell.begin + t) * dims.y_stride + h * p;
      for (int64_t i = 0; i < p; i += lanes()) {
        V sum = load(at.scaled + t * at.p + i, p - i);
        if (a.skip != nullptr) sum = hn::MulAdd(skip, load(x + i, p - i), sum);
        store(sum, y + i, p - i);
      }
    }
  }
}

// w_ij += decay_ij dm_ij below the diagonal.
HWY_INLINE void add_masked(int64_t count, int64_t stride, const float* decay, const float* dm,
                           float* w) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j <= i; j += lanes()) {
      const int64_t n = i + 1 - j, at = i * stride + j;
      store(hn::MulAdd(load(decay + at, n), load(dm + at, n), load(w + at, n)), w + at, n);
    }
  }
}

// The share of head h in du, db, dc and in w, the gradient of C B^T.
void chunk_head_grads(const ChunkGroup& a, const ChunkGrads& grads, int64_t index, int64_t h,
                      const Matrices& at, bool first) {
  const SsdDims& dims = a.dims.base;
  const SsdChunk& cell = a.dims.cells[index];
  const int64_t p = dims.head_dim, n = dims.state, count = cell.count, gn = dims.groups * n;
  const int64_t g = h / dims.heads_per_group(), hp = dims.heads * p;
  const float* dy = grads.dy + cell.begin * grads.dy_stride + h * p;
  const float* start = a.starts + (index * dims.heads + h) * p * n;
  const float* end = grads.ends + (index * dims.heads + h) * p * n;
  float* du = grads.du + cell.begin * hp + h * p;
  float* db = grads.db + cell.begin * gn + g * n;
  float* dc = grads.dc + cell.begin * gn + g * n;
  Decays decays(at.decays, at.q);
  decays.set(dims, cell, h, a.log_decay);
  mask(count, at.q, decays, at.cb, at.decay, at.m);
  chunk_inputs(a, cell, h, at, decays.high);

  // du_j = exp(a_end - a_j) G B_j + sum_{i >= j} m_ij dy_i
  simd::transpose(p, n, end, n, at.transposed, at.p);
  gemm({.m = count, .n = p, .k = n, .a_row = dims.b_stride, .a_col = 1, .b_row = at.p, .c_row = hp},
       a.b + cell.begin * dims.b_stride + g * n, at.transposed, nullptr, du);
  scale_rows(count, p, decays.to_end, du, hp, du, hp);
  lower_transposed_times(count, p, at.m, at.q, dy, grads.dy_stride, du, hp);

  // w += decay (dy u^T), below the diagonal; m is free for the product.
  simd::transpose(count, p, at.u, at.p, at.ut, at.q);
  for (int64_t i = 0; i < count; i += kTriangleRows) {
    const int64_t rows = std::min(kTriangleRows, count - i);
    gemm({.m = rows,
          .n = i + rows,
          .k = p,
          .a_row = grads.dy_stride,
          .a_col = 1,
          .b_row = at.q,
          .c_row = at.q},
         dy + i * grads.dy_stride, at.ut, nullptr, at.m + i * at.q);
  }
  add_masked(count, at.q, at.decay, at.m, at.w);

  // db_j += exp(a_end - a_j) u_j G,  dc_i += exp(a_i) dy_i S
  const simd::GemmDims product{.m = count,
                               .n = n,
                               .k = p,
                               .a_row = at.p,
                               .a_col = 1,
                               .b_row = n,
                               .c_row = gn,
                               .start_row = gn};
  scale_rows(count, p, decays.to_end, at.u, at.p, at.scaled, at.p);
  gemm(product, at.scaled, end, first ? nullptr : db, db);
  scale_rows(count, p, decays.from_start, dy, grads.dy_stride, at.scaled, at.p);
  gemm(product, at.scaled, start, first ? nullptr : dc, dc);
}

void chunk_grads(const ChunkGroup& a, const ChunkGrads& grads, int64_t index, int64_t g,
                 float* scratch) {
  const SsdDims& dims = a.dims.base;
  const SsdChunk& cell = a.dims.cells[index];
  const Matrices at(a.dims, scratch);
  const int64_t n = dims.state, gn = dims.groups * n, first = g * dims.heads_per_group();
  chunk_scores(a, cell, g, at);
  std::fill_n(at.w, cell.count * at.q, 0.0f);
  for (int64_t h = first; h < first + dims.heads_per_group(); ++h) {
    chunk_head_grads(a, grads, index, h, at, h == first);
  }
  lower_transposed_times(cell.count, n, at.w, at.q, a.c + cell.begin * dims.c_stride + g * n,
                         dims.c_stride, grads.db + cell.begin * gn + g * n, gn);
  lower_times(cell.count, n, at.w, at.q, a.b + cell.begin * dims.b_stride + g * n, dims.b_stride,
              grads.dc + cell.begin * gn + g * n, gn);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(chunk_outputs);
HWY_EXPORT(chunk_grads);

int64_t ssd_chunk_scratch(const SsdChunkDims& dims) {
  const int64_t q = round_up(dims.chunk, kMaxLanes), p = round_up(dims.base.head_dim, kMaxLanes);
  return q * (4 + 4 * q + 2 * p) + (dims.base.state + dims.base.head_dim) * q + dims.base.state * p;
}

void ssd_chunk_outputs(ThreadPool& threads, const SsdChunkDims& dims, const float* x,
                       const float* dt, const float* b, const float* c, const float* log_decay,
                       const float* skip, const float* starts, float* scratch, float* y) {
  const ChunkGroup a{dims, x, dt, b, c, log_decay, skip, starts, y};
  const int64_t groups = dims.base.groups, worker_scratch = ssd_chunk_scratch(dims);
  threads.parallel_for(dims.chunks * groups, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(chunk_outputs)
      (a, i / groups, i % groups, scratch + worker * worker_scratch);
    }
  });
}

void ssd_chunk_grads(ThreadPool& threads, const SsdChunkDims& dims, const float* x, const float* dt,
                     const float* b, const float* c, const float* log_decay, const float* dy,
                     int64_t dy_stride, const float* starts, const float* ends, float* scratch,
                     float* du, float* db, float* dc) {
  const ChunkGroup a{dims, x, dt, b, c, log_decay, nullptr, starts, nullptr};
  const ChunkGrads grads{dy, dy_stride, ends, du, db, dc};
  const int64_t groups = dims.base.groups, worker_scratch = ssd_chunk_scratch(dims);
  threads.parallel_for(dims.chunks * groups, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(chunk_grads)
      (a, grads, i / groups, i % groups, scratch + worker * worker_scratch);
    }
  });
}

}  // namespace braid::cpu
#endif
