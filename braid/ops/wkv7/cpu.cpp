// The recurrence, token by token: the columns of a state are independent, so they are the lanes.
#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/wkv7/kernels.h"
#include "braid/simd/prefetch.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/wkv7/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// Vectors of columns that go through a sequence together: for each, the sums y and the next token's
// reads, v and this token's reads stay in registers.
constexpr int kMaxVectors = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 4 : 2;

// Of six operands at once: more would push the state out of the nearest cache.
constexpr int64_t kRowsAhead = 4;

struct Columns {
  int64_t first, last;  // rows of the batch
  int64_t head, column, width;
};

// kWhole: the last of the vectors is a whole one.
template <int kVectors, bool kWhole>
struct Access {
  int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  size_t tail;  // elements of the last vector

  explicit Access(int64_t width)
      : tail(static_cast<size_t>(width - (kVectors - 1) * static_cast<int64_t>(hn::Lanes(D())))) {}
  HWY_INLINE V load(const float* p, int j) const {
    if (kWhole || j + 1 < kVectors) return hn::LoadU(D(), p + j * lanes);
    return sv::load_partial(D(), p + j * lanes, tail);
  }
  HWY_INLINE void store(V v, float* p, int j) const {
    if (kWhole || j + 1 < kVectors) {
      hn::StoreU(v, D(), p + j * lanes);
    } else {
      sv::store_partial(v, D(), p + j * lanes, tail);
    }
  }
};

// One token. `state` is that of the columns, rows P apart; `reads` is a^T S of this token and
// becomes that of the next one, whose a is `a_next`.
template <int kVectors, bool kWhole>
HWY_INLINE void step(const Access<kVectors, kWhole>& at, int64_t P, const float* HWY_RESTRICT w,
                     const Wkv7Operands& in, int64_t row, const float* HWY_RESTRICT v,
                     const float* HWY_RESTRICT a_next, float* HWY_RESTRICT state, V* reads,
                     float* y) {
  const D d;
  const float* HWY_RESTRICT r = in.r + row;
  const float* HWY_RESTRICT k = in.k + row;
  const float* HWY_RESTRICT b = in.b + row;
  V vs[kVectors], sum[kVectors], next[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    vs[j] = at.load(v, j);
    sum[j] = next[j] = hn::Zero(d);
  }
  for (int64_t i = 0; i < P; ++i) {
    const V wi = hn::Set(d, w[i]), bi = hn::Set(d, b[i]), ki = hn::Set(d, k[i]);
    const V ri = hn::Set(d, r[i]), ai = hn::Set(d, a_next[i]);
    float* HWY_RESTRICT at_row = state + i * P;
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      V s = hn::Mul(wi, at.load(at_row, j));
      s = hn::MulAdd(bi, reads[j], s);
      s = hn::MulAdd(ki, vs[j], s);
      at.store(s, at_row, j);
      sum[j] = hn::MulAdd(ri, s, sum[j]);
      next[j] = hn::MulAdd(ai, s, next[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    at.store(sum[j], y, j);
    reads[j] = next[j];
  }
}

// A few columns of one head through the whole of a sequence; `state` holds them before and after.
// `cells` (H P P apart) receives them at the beginning of each cell, or is null.
template <int kVectors, bool kWhole>
void scan_columns(const Wkv7Dims& dims, int64_t s, const Columns& c, const Wkv7Operands& in,
                  float* state, float* reads_out, float* cells, float* y) {
  const D d;
  const Access<kVectors, kWhole> at(c.width);
  const int64_t P = dims.head_dim, stride = dims.width();
  HWY_ALIGN float w[kWkv7MaxHead];
  V reads[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) reads[j] = hn::Zero(d);
  const float* a = in.a + c.first * stride + c.head * P;
  for (int64_t i = 0; i < P; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      reads[j] = hn::MulAdd(hn::Set(d, a[i]), at.load(state + i * P, j), reads[j]);
    }
  }
  int64_t until = 0;  // rows left in the cell
  for (int64_t t = c.first; t < c.last; ++t, --until) {
    const int64_t row = t * stride + c.head * P, out = row + c.column;
    if (cells != nullptr && until == 0) {
      until = dims.cell_rows(s, t - c.first, c.last - c.first);
      for (int64_t i = 0; i < P; ++i) std::copy_n(state + i * P, c.width, cells + i * P);
      cells += dims.heads * dims.state();
    }
    if (reads_out != nullptr) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) at.store(reads[j], reads_out + out, j);
    }
    sv::for_each_vector(static_cast<size_t>(P), [&](auto access, size_t i) {
      for (const float* x : {in.r, in.log_decay, in.k, in.v, in.a, in.b}) {
        simd::prefetch_row_ahead(x + row + i, stride, kRowsAhead);
      }
      access.store(sv::exp(access.load(in.log_decay + row + i)), w + i);
    });
    // After the last token the next reads are those of another call, which starts with its own.
    const float* a_next = in.a + (t + 1 < c.last ? row + stride : row);
    step<kVectors, kWhole>(at, P, w, in, row, in.v + out, a_next, state, reads, y + out);
  }
}

template <int kVectors>
void scan_width(const Wkv7Dims& dims, int64_t s, const Columns& c, const Wkv7Operands& in,
                float* state, float* reads, float* cells, float* y) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  if constexpr (kVectors > 1) {
    if (c.width <= (kVectors - 1) * lanes) {
      scan_width<kVectors - 1>(dims, s, c, in, state, reads, cells, y);
      return;
    }
  }
  if (c.width == kVectors * lanes) {
    scan_columns<kVectors, true>(dims, s, c, in, state, reads, cells, y);
  } else {
    scan_columns<kVectors, false>(dims, s, c, in, state, reads, cells, y);
  }
}

void scan_head(const Wkv7Dims& dims, int64_t s, int64_t h, const Wkv7Operands& in, const float* h0,
               float* ht, const Wkv7Kept& kept, float* y) {
  const int64_t P = dims.head_dim;
  float* state = ht + h * dims.state();
  if (h0 == nullptr) {
    std::fill_n(state, dims.state(), 0.0f);
  } else if (h0 != ht) {
    std::copy_n(h0 + h * dims.state(), dims.state(), state);
  }
  if (dims.offsets[s] == dims.offsets[s + 1]) return;
  const int64_t most = kMaxVectors * static_cast<int64_t>(hn::Lanes(D()));
  for (int64_t column = 0; column < P; column += most) {
    const Columns c{.first = dims.offsets[s],
                    .last = dims.offsets[s + 1],
                    .head = h,
                    .column = column,
                    .width = std::min(most, P - column)};
    float* cells = kept.states == nullptr
                       ? nullptr
                       : kept.states + (dims.firsts[s] * dims.heads + h) * dims.state() + column;
    scan_width<kMaxVectors>(dims, s, c, in, state + column, kept.reads, cells, y);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(scan_head);

void wkv7_scan(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
               const float* const* h0, float* const* ht, const Wkv7Kept& kept, float* y) {
  constexpr int64_t kGrainWork = 32768;  // state elements x tokens worth a task
  const int64_t length = std::max<int64_t>(1, dims.tokens / std::max<int64_t>(1, dims.sequences));
  const int64_t grain = std::max<int64_t>(1, kGrainWork / (dims.state() * length));
  threads.parallel_for(dims.sequences * dims.heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / dims.heads;
      HWY_DYNAMIC_DISPATCH(scan_head)
      (dims, s, i % dims.heads, in, h0[s], ht[s], kept, y);
    }
  });
}

}  // namespace braid::cpu
#endif
