// The recurrence cell by cell: products of small matrices, and their vjp. README.md has the
// derivation and the letters.
#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/wkv7/kernels.h"
#include "braid/simd/gemm.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/wkv7/chunked_cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <hwy/cache_control.h>

#include "braid/ops/wkv7/cells-inl.h"

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(cell_pairs);
HWY_EXPORT(cell_grads);
HWY_EXPORT(scale_rows);
HWY_EXPORT(solve);
HWY_EXPORT(row_dots);

namespace {

constexpr int64_t kQ = kWkv7Chunk;
constexpr int64_t kGroupHeads = 6;

// c (m, n) <- start + a b, all rows contiguous in memory; a is (m, k), or (k, m) if `transposed`.
void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, bool transposed,
             const float* b, int64_t b_row, const float* start, int64_t start_row, float* c,
             int64_t c_row) {
  simd::gemm({.m = m,
              .n = n,
              .k = k,
              .a_row = transposed ? 1 : a_row,
              .a_col = transposed ? a_row : 1,
              .b_row = b_row,
              .c_row = c_row,
              .start_row = start_row},
             a, b, start, c);
}

// One worker's scratch. "Pairs" are two blocks of a cell's rows, one under the other.
struct Scratch {
  float* base;  // null to find out how much is used
  int64_t used = 0;
  float* take(int64_t count) {
    float* at = base == nullptr ? nullptr : base + used;
    used += count;
    return at;
  }
  int64_t P;
  CellDecays decays;
  CellPairs pairs;
  float* zt;    // (P, 2Q)
  float* m;     // (2Q, 2Q): x z^T, causal
  float* vu;    // (2Q, P): v over the reads u
  float* pair;  // (2Q, P)

  Scratch(float* memory, int64_t head_dim) : base(memory), P(head_dim) {
    const int64_t rows = 2 * kQ * P;
    decays.before = take(P);  // and its other rows are those of `read`
    decays.read = take(kQ * P);
    decays.write = take(kQ * P);
    for (float** one : {&decays.begin, &decays.end, &decays.total}) *one = take(P);
    for (float** one : {&pairs.x, &pairs.z, &pairs.x_begin, &pairs.z_end, &zt, &vu, &pair}) {
      *one = take(rows);
    }
    m = take(4 * kQ * kQ);
  }
};

struct GradScratch : Scratch {
  float* dyw;                          // (2Q, P): dy over the gradient of a's products
  float *dx_begin, *dz_end, *dx, *dz;  // (2Q, P)
  float *vut, *dm;                     // (P, 2Q), (2Q, 2Q)
  float* transposed;                   // (P, P)
  float* carry;                        // (P)
  float* all_g;                        // (kGroupHeads, P, P)
  float* g;                            // (P, P), one of them
  bool stream = false;                 // gradients go past the caches

  GradScratch(float* memory, int64_t head_dim) : Scratch(memory, head_dim) {
    for (float** one : {&dyw, &dx_begin, &dz_end, &dx, &dz, &vut}) *one = take(2 * kQ * P);
    dm = take(4 * kQ * kQ);
    transposed = take(P * P);
    carry = take(P);
    g = all_g = take(kGroupHeads * P * P);
  }
};

void copy_rows(int64_t n, int64_t P, const float* x, int64_t x_row, float* to, int64_t to_row) {
  for (int64_t i = 0; i < n; ++i) std::copy_n(x + i * x_row, P, to + i * to_row);
}

// Keeps what a token may see in m (2n, 2n): rows of r include the token itself, rows of a do not.
void mask(int64_t n, float* m) {
  for (int64_t i = 0; i < n; ++i) {
    float* of_r = m + i * 2 * n;
    float* of_a = m + (n + i) * 2 * n;
    for (const int64_t half : {int64_t{0}, n}) {
      std::fill(of_r + half + i + 1, of_r + half + n, 0.0f);
      std::fill(of_a + half + i, of_a + half + n, 0.0f);
    }
  }
}

CellRows rows_of(const Wkv7Operands& in, int64_t row, int64_t stride, int64_t n, int64_t P) {
  return {n, P, stride, in.r + row, in.log_decay + row, in.k + row, in.a + row, in.b + row};
}

// The decays, pairs, zt and m of the n rows from `row` (in elements) on, and v; stride is that of
// the operands.
void prepare_cell(const Wkv7Operands& in, int64_t row, int64_t stride, int64_t n,
                  const Scratch& at) {
  const int64_t P = at.P, n2 = 2 * n;
  HWY_DYNAMIC_DISPATCH(cell_pairs)(rows_of(in, row, stride, n, P), at.decays, at.pairs);
  simd::transpose(n2, P, at.pairs.z, P, at.zt, n2);
  product(n2, n2, P, at.pairs.x, P, false, at.zt, n2, nullptr, 0, at.m, n2);
  mask(n, at.m);
  copy_rows(n, P, in.v + row, stride, at.vu, P);
}

// One cell from `state` (P, P), which it leaves as after the cell.
void forward_cell(const Wkv7Operands& in, int64_t row, int64_t stride, int64_t n, const Scratch& at,
                  float* state, float* y) {
  const int64_t P = at.P, n2 = 2 * n;
  prepare_cell(in, row, stride, n, at);
  product(n2, P, P, at.pairs.x_begin, P, false, state, P, nullptr, 0, at.pair, P);
  float* u = at.vu + n * P;
  product(n, P, n, at.m + n * n2, n2, false, at.vu, P, at.pair + n * P, P, u, P);
  HWY_DYNAMIC_DISPATCH(solve)(n, P, at.m + n * n2 + n, n2, false, u);
  product(n, P, n2, at.m, n2, false, at.vu, P, at.pair, P, y + row, stride);
  HWY_DYNAMIC_DISPATCH(scale_rows)(P, at.decays.total, state);
  product(P, P, n2, at.pairs.z_end, P, true, at.vu, P, state, P, state, P);
}

// The same backwards: at.g is the gradient of the state after the cell and becomes that of `begin`,
// the state before it; at.carry goes with the former.
void backward_cell(const Wkv7Operands& in, int64_t row, int64_t stride, int64_t n,
                   const GradScratch& at, const float* begin, const float* reads, const float* dy,
                   const Wkv7Grads& grads) {
  const int64_t P = at.P, n2 = 2 * n;
  prepare_cell(in, row, stride, n, at);
  copy_rows(n, P, reads + row, stride, at.vu + n * P, P);
  copy_rows(n, P, dy + row, stride, at.dyw, P);

  // Of v and u: through the state and y, then back through the solve.
  float* const dv = at.pair;
  float* const w = at.dyw + n * P;
  product(n2, P, P, at.pairs.z_end, P, false, at.g, P, nullptr, 0, dv, P);
  product(n2, P, n, at.m, n2, true, at.dyw, P, dv, P, dv, P);
  std::copy_n(dv + n * P, n * P, w);
  HWY_DYNAMIC_DISPATCH(solve)(n, P, at.m + n * n2 + n, n2, true, w);
  product(n, P, n, at.m + n * n2, n2, true, w, P, dv, P, dv, P);

  // Of x and z: through the states and through m.
  simd::transpose(P, P, begin, P, at.transposed, P);
  product(n2, P, P, at.dyw, P, false, at.transposed, P, nullptr, 0, at.dx_begin, P);
  simd::transpose(P, P, at.g, P, at.transposed, P);
  product(n2, P, P, at.vu, P, false, at.transposed, P, nullptr, 0, at.dz_end, P);
  simd::transpose(n2, P, at.vu, P, at.vut, n2);
  product(n2, n2, P, at.dyw, P, false, at.vut, n2, nullptr, 0, at.dm, n2);
  mask(n, at.dm);
  product(n2, P, n2, at.dm, n2, false, at.pairs.z, P, nullptr, 0, at.dx, P);
  product(n2, P, n2, at.dm, n2, true, at.pairs.x, P, nullptr, 0, at.dz, P);
  HWY_DYNAMIC_DISPATCH(cell_grads)
  (rows_of(in, row, stride, n, P), at.decays, at.pairs, {at.dx_begin, at.dz_end, at.dx, at.dz, dv},
   at.carry,
   {grads.dr + row, grads.d_log_decay + row, grads.dk + row, grads.dv + row, grads.da + row,
    grads.db + row, at.stream});

  HWY_DYNAMIC_DISPATCH(scale_rows)(P, at.decays.total, at.g);
  product(P, P, n2, at.pairs.x_begin, P, true, at.dyw, P, at.g, P, at.g, P);
}

struct Group {
  int64_t s, begin, end;  // heads of a sequence
};

// A few heads of a sequence, cell by cell from its end.
void group_vjp(const Wkv7Dims& dims, const Wkv7Operands& in, const Wkv7Kept& kept, const float* dy,
               const Group& group, const float* last, const float* d_final, float* d_initial,
               GradScratch& at, const Wkv7Grads& grads) {
  const int64_t state = dims.state(), P = dims.head_dim, first = dims.offsets[group.s];
  const auto use_head = [&](int64_t h) { at.g = at.all_g + (h - group.begin) * state; };
  for (int64_t h = group.begin; h < group.end; ++h) {
    use_head(h);
    if (d_final == nullptr) {
      std::fill_n(at.g, state, 0.0f);
    } else {
      std::copy_n(d_final + h * state, state, at.g);
    }
  }
  int64_t cell = dims.firsts[group.s + 1];
  for (int64_t t = dims.offsets[group.s + 1] - first; t > 0;) {
    const int64_t within = (dims.starts[group.s] + t) % kQ;
    const int64_t n = std::min(t, within == 0 ? kQ : within);
    const bool ends = cell-- == dims.firsts[group.s + 1];
    t -= n;
    for (int64_t h = group.begin; h < group.end; ++h) {
      use_head(h);
      const float* before = kept.states + (cell * dims.heads + h) * state;
      const float* after = ends ? last + h * state : before + dims.heads * state;
      // Taken anew for each cell, so that rounding does not add up along the sequence.
      HWY_DYNAMIC_DISPATCH(row_dots)(P, at.g, after, at.carry);
      backward_cell(in, (first + t) * dims.width() + h * P, dims.width(), n, at, before, kept.reads,
                    dy, grads);
    }
  }
  if (d_initial == nullptr) return;
  std::copy_n(at.all_g, (group.end - group.begin) * state, d_initial + group.begin * state);
}

// Gradients that no cache holds until they are read are written past it: a line that is stored to
// is fetched first otherwise, and rows lie pages apart.
bool streams(const Wkv7Dims& dims) {
  constexpr int64_t kLeastBytes = int64_t{4} << 20;
  return dims.head_dim % 16 == 0 && 6 * dims.tokens * dims.width() * 4 >= kLeastBytes;
}

}  // namespace

int64_t wkv7_scratch(const Wkv7Dims& dims) {
  return std::max(GradScratch(nullptr, dims.head_dim).used,
                  (kQ + 2) * dims.state() + 2 * dims.head_dim);
}

void wkv7_chunks(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                 const float* const* h0, float* const* ht, const Wkv7Kept& kept, float* scratch,
                 float* y) {
  const int64_t P = dims.head_dim, size = wkv7_scratch(dims);
  threads.parallel_for(dims.sequences * dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    const Scratch at(scratch + worker * size, P);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / dims.heads, h = i % dims.heads, first = dims.offsets[s];
      const int64_t length = dims.offsets[s + 1] - first;
      float* state = ht[s] + h * dims.state();
      if (h0[s] == nullptr) {
        std::fill_n(state, dims.state(), 0.0f);
      } else if (h0[s] != ht[s]) {
        std::copy_n(h0[s] + h * dims.state(), dims.state(), state);
      }
      int64_t cell = dims.firsts[s];
      for (int64_t t = 0, n = 0; t < length; t += n, ++cell) {
        n = dims.cell_rows(s, t, length);
        const int64_t row = (first + t) * dims.width() + h * P;
        if (kept.states != nullptr) {
          std::copy_n(state, dims.state(), kept.states + (cell * dims.heads + h) * dims.state());
        }
        forward_cell(in, row, dims.width(), n, at, state, y);
        if (kept.reads == nullptr) continue;
        copy_rows(n, P, at.vu + n * P, P, kept.reads + row, dims.width());
      }
    }
  });
}

void wkv7_chunks_vjp(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                     const Wkv7Kept& kept, const float* dy, const float* const* last,
                     const float* const* d_final, float* const* d_initial, float* scratch,
                     const Wkv7Grads& grads) {
  // Heads that go through a cell together: their rows lie side by side.
  const int64_t H = dims.heads, size = wkv7_scratch(dims);
  const int64_t group =
      std::clamp<int64_t>(dims.sequences * H / (2 * threads.size()), 1, std::min(H, kGroupHeads));
  const int64_t groups = (H + group - 1) / group;
  const bool stream = streams(dims);
  threads.parallel_for(dims.sequences * groups, 1, [&](int64_t begin, int64_t end, int worker) {
    GradScratch at(scratch + worker * size, dims.head_dim);
    at.stream = stream;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / groups, h0 = i % groups * group;
      group_vjp(dims, in, kept, dy, {s, h0, std::min(H, h0 + group)}, last[s], d_final[s],
                d_initial[s], at, grads);
    }
    hwy::FlushStream();
  });
}

}  // namespace braid::cpu
#endif
