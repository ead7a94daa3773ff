// Scores of a segment lie in one row a query: a column for every summary, then one for every row of
// the block before and of the own one, of which those past the query are masked. So a row's length,
// and with it the order of its sums, depends only on the block it lies in. Products are
// micro-kernels of simd/gemm.

#include <algorithm>
#include <limits>

#include "braid/core/thread_pool.h"
#include "braid/ops/linformer/kernels.h"
#include "braid/simd/gemm.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/linformer/cpu.cpp"
#include <hwy/foreach_target.h>
#include "braid/simd/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

using V = vec::F32;

// s <- exp(scale (s - max s)), the last columns of which may be -inf; returns their sum.
float exponentials(int64_t count, float scale, float* s) {
  float most = s[0];
  for (int64_t j = 1; j < count; ++j) most = std::max(most, s[j]);
  const vec::F32Tag d;
  const V top = hn::Set(d, most), factor = hn::Set(d, scale);
  const auto columns = static_cast<size_t>(count);
  vec::for_each_vector(columns, [&](auto at, size_t j) {
    at.store(vec::exp(hn::Mul(hn::Sub(at.load(s + j), top), factor)), s + j);
  });
  return vec::sum_over_row(columns,
                           [&](auto at, size_t j, V sum) { return hn::Add(sum, at.load(s + j)); });
}

void scale_row(int64_t count, float factor, float* x) {
  const V f = hn::Set(vec::F32Tag(), factor);
  vec::for_each_vector(static_cast<size_t>(count),
                       [&](auto at, size_t j) { at.store(hn::Mul(at.load(x + j), f), x + j); });
}

// dp <- scale p (dp - <p, dp>)
void softmax_gradient(int64_t count, float scale, const float* p, float* dp) {
  const vec::F32Tag d;
  const auto columns = static_cast<size_t>(count);
  const V mean = hn::Set(d, vec::sum_over_row(columns, [&](auto at, size_t j, V sum) {
                           return hn::MulAdd(at.load(p + j), at.load(dp + j), sum);
                         }));
  const V factor = hn::Set(d, scale);
  vec::for_each_vector(columns, [&](auto at, size_t j) {
    at.store(hn::Mul(hn::Mul(factor, at.load(p + j)), hn::Sub(at.load(dp + j), mean)), dp + j);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(exponentials);
HWY_EXPORT(scale_row);
HWY_EXPORT(softmax_gradient);

namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// What one kv head of a segment sees.
class Head {
 public:
  // Rows that every query sees, from `column` of the scores on.
  struct Part {
    const float *k, *v;
    int64_t k_stride, v_stride;
    int64_t rows, column;
  };

  Head(const LinformerDims& dims, const LinformerSegment& segment,
       const LinformerSummary* summaries, int64_t kv_head)
      : dims_(dims), segment_(segment), summaries_(summaries + segment.summary), h_(kv_head) {}

  int64_t k_stride() const { return dims_.kv_heads * dims_.head_dim; }
  int64_t v_stride() const { return dims_.kv_heads * dims_.value_dim; }
  bool has_own() const { return segment_.own.k != nullptr; }
  bool has_before() const { return segment_.before.k != nullptr; }
  int64_t own_rows() const { return has_own() ? segment_.first + segment_.length : 0; }
  int64_t own_column() const {
    return segment_.summaries * dims_.rank + (has_before() ? dims_.block : 0);
  }
  int64_t columns() const { return own_column() + dims_.block; }

  /// Summaries, then the block before.
  int64_t parts() const { return segment_.summaries + (has_before() ? 1 : 0); }
  Part part(int64_t i) const {
    if (i < segment_.summaries) {
      return {.k = summaries_[i].k + h_ * dims_.head_dim,
              .v = summaries_[i].v + h_ * dims_.value_dim,
              .k_stride = k_stride(),
              .v_stride = v_stride(),
              .rows = dims_.rank,
              .column = i * dims_.rank};
    }
    return rows(segment_.before, dims_.block, i * dims_.rank);
  }
  Part own() const { return rows(segment_.own, own_rows(), own_column()); }

  // (hd, columns) and (dv, columns): columns along the lanes. Those of rows that are not there yet
  // are zero.
  void turn_keys(float* to) const {
    for_each_part([&](const Part& p) {
      simd::transpose(p.rows, dims_.head_dim, p.k, p.k_stride, to + p.column, columns());
    });
    clear_columns(dims_.head_dim, to);
  }
  void turn_values(float* to) const {
    for_each_part([&](const Part& p) {
      simd::transpose(p.rows, dims_.value_dim, p.v, p.v_stride, to + p.column, columns());
    });
    clear_columns(dims_.value_dim, to);
  }

 private:
  Part rows(const LinformerRows& from, int64_t count, int64_t column) const {
    return {.k = from.k + h_ * dims_.head_dim,
            .v = from.v + h_ * dims_.value_dim,
            .k_stride = from.k_stride,
            .v_stride = from.v_stride,
            .rows = count,
            .column = column};
  }
  template <class Body>
  void for_each_part(Body&& body) const {
    for (int64_t i = 0; i < parts(); ++i) body(part(i));
    if (has_own()) body(own());
  }
  void clear_columns(int64_t rows, float* x) const {
    const int64_t n = columns(), from = own_column() + own_rows();
    for (int64_t i = 0; i < rows; ++i) std::fill_n(x + i * n + from, n - from, 0.0f);
  }

  const LinformerDims& dims_;
  const LinformerSegment& segment_;
  const LinformerSummary* summaries_;
  int64_t h_;
};

// p (rows, columns) <- exponentials of the scores, and the reciprocals of their sums.
void weights(const LinformerDims& dims, const LinformerSegment& s, const Head& head, const float* q,
             const float* keys, float* p, float* reciprocals) {
  const int64_t n = head.columns();
  simd::gemm({.m = s.length,
              .n = n,
              .k = dims.head_dim,
              .a_row = dims.q_stride,
              .a_col = 1,
              .b_row = n,
              .c_row = n},
             q, keys, nullptr, p);
  for (int64_t i = 0; i < s.length; ++i) {
    float* row = p + i * n;
    if (head.has_own()) {
      const int64_t seen = head.own_column() + s.first + i + 1;
      std::fill(row + seen, row + n, kMasked);
    }
    reciprocals[i] = 1.0f / HWY_DYNAMIC_DISPATCH(exponentials)(n, dims.scale, row);
  }
}

// One head of one segment. y: its first row and column.
void attend(const LinformerDims& dims, const LinformerSegment& s, const Head& head, const float* p,
            const float* reciprocals, float* y) {
  const int64_t n = head.columns(), dv = dims.value_dim, y_stride = dims.heads * dv;
  for (int64_t i = 0; i < head.parts(); ++i) {
    const Head::Part part = head.part(i);
    simd::gemm({.m = s.length,
                .n = dv,
                .k = part.rows,
                .a_row = n,
                .a_col = 1,
                .b_row = part.v_stride,
                .c_row = y_stride,
                .start_row = y_stride},
               p + part.column, part.v, i == 0 ? nullptr : y, y);
  }
  for (int64_t i = 0; i < s.length; ++i) {
    float* row = y + i * y_stride;
    if (head.has_own()) {
      // Row by row, so that not even a NaN of a later token gets in.
      const Head::Part own = head.own();
      simd::gemm({.m = 1,
                  .n = dv,
                  .k = s.first + i + 1,
                  .a_row = 0,
                  .a_col = 1,
                  .b_row = own.v_stride,
                  .c_row = y_stride},
                 p + i * n + own.column, own.v, head.parts() == 0 ? nullptr : row, row);
    }
    HWY_DYNAMIC_DISPATCH(scale_row)(dv, reciprocals[i], row);
  }
}

struct Buffers {
  float *keys, *values;  // (hd, columns), (dv, columns)
  float *p, *dp;         // (rows, columns)
  float* reciprocals;    // (rows)

  Buffers(const LinformerDims& dims, bool backward, float* scratch) : keys(scratch) {
    const int64_t n = dims.columns_max();
    p = keys + dims.head_dim * n;
    reciprocals = p + kLinformerRows * n;
    values = dp = nullptr;
    if (!backward) return;
    values = reciprocals + kLinformerRows;
    dp = values + dims.value_dim * n;
  }
};

// c (m, n) <- c + a^T b, for a (k, m) and b (k, n).
void add_product_of_columns(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride,
                            const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  simd::gemm({.m = m,
              .n = n,
              .k = k,
              .a_row = 1,
              .a_col = a_stride,
              .b_row = b_stride,
              .c_row = c_stride,
              .start_row = c_stride},
             a, b, c, c);
}

// Gradients of one query head h of a segment, given p, normalised, and ds in `b.dp`. The gradients
// of a part's keys and values begin at dk and dv.
void spread_part(const LinformerDims& dims, const LinformerSegment& s, const Head& head, int64_t h,
                 const Head::Part& part, const float* q, const LinformerVjp& g, const Buffers& b,
                 float* dk, float* dv) {
  const int64_t n = head.columns(), QC = dims.heads * dims.head_dim;
  float* dq = g.dq + s.row * QC + h * dims.head_dim;
  simd::gemm({.m = s.length,
              .n = dims.head_dim,
              .k = part.rows,
              .a_row = n,
              .a_col = 1,
              .b_row = part.k_stride,
              .c_row = QC,
              .start_row = QC},
             b.dp + part.column, part.k, dq, dq);
  add_product_of_columns(part.rows, dims.head_dim, s.length, b.dp + part.column, n, q,
                         dims.q_stride, dk, head.k_stride());
  add_product_of_columns(part.rows, dims.value_dim, s.length, b.p + part.column, n,
                         g.dy + s.row * g.dy_stride + h * dims.value_dim, g.dy_stride, dv,
                         head.v_stride());
}

void spread(const LinformerDims& dims, const LinformerSegment& s, const Head& head, int64_t kv_head,
            int64_t h, const float* q, const LinformerVjp& g, const Buffers& b) {
  const int64_t KC = head.k_stride(), VC = head.v_stride();
  const int64_t k0 = kv_head * dims.head_dim, v0 = kv_head * dims.value_dim;
  for (int64_t i = 0; i < s.summaries; ++i) {
    const int64_t row = (s.summary + i) * dims.rank;
    spread_part(dims, s, head, h, head.part(i), q, g, b, g.dsk + row * KC + k0,
                g.dsv + row * VC + v0);
  }
  if (!head.has_own()) return;
  const int64_t row = s.row - s.first;
  if (head.has_before()) {
    spread_part(dims, s, head, h, head.part(s.summaries), q, g, b,
                g.dk + (row - dims.block) * KC + k0, g.dv + (row - dims.block) * VC + v0);
  }
  spread_part(dims, s, head, h, head.own(), q, g, b, g.dk + row * KC + k0, g.dv + row * VC + v0);
}

void backward(const LinformerDims& dims, const LinformerSegment& s,
              const LinformerSummary* summaries, int64_t kv_head, const float* q,
              const LinformerVjp& g, const Buffers& b) {
  const Head head(dims, s, summaries, kv_head);
  const int64_t n = head.columns();
  head.turn_keys(b.keys);
  head.turn_values(b.values);
  for (int64_t h = kv_head * dims.group(); h < (kv_head + 1) * dims.group(); ++h) {
    const float* q_rows = q + s.row * dims.q_stride + h * dims.head_dim;
    weights(dims, s, head, q_rows, b.keys, b.p, b.reciprocals);
    simd::gemm({.m = s.length,
                .n = n,
                .k = dims.value_dim,
                .a_row = g.dy_stride,
                .a_col = 1,
                .b_row = n,
                .c_row = n},
               g.dy + s.row * g.dy_stride + h * dims.value_dim, b.values, nullptr, b.dp);
    for (int64_t i = 0; i < s.length; ++i) {
      HWY_DYNAMIC_DISPATCH(scale_row)(n, b.reciprocals[i], b.p + i * n);
      HWY_DYNAMIC_DISPATCH(softmax_gradient)(n, dims.scale, b.p + i * n, b.dp + i * n);
    }
    spread(dims, s, head, kv_head, h, q_rows, g, b);
  }
}

}  // namespace

int64_t linformer_scratch(const LinformerDims& dims) {
  return (dims.head_dim + kLinformerRows) * dims.columns_max() + kLinformerRows;
}

int64_t linformer_vjp_scratch(const LinformerDims& dims) {
  return linformer_scratch(dims) + (dims.value_dim + kLinformerRows) * dims.columns_max();
}

void linformer_attention(ThreadPool& threads, const LinformerDims& dims, int64_t segments,
                         const LinformerSegment* segment, const LinformerSummary* summaries,
                         const float* q, float* y, float* scratch) {
  const int64_t floats = linformer_scratch(dims), QC = dims.heads * dims.value_dim;
  threads.parallel_for(segments * dims.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
    const Buffers b(dims, false, scratch + worker * floats);
    for (int64_t i = begin; i < end; ++i) {
      // Late segments see most: they come first, so that threads end together.
      const LinformerSegment& s = segment[segments - 1 - i / dims.kv_heads];
      const int64_t kv_head = i % dims.kv_heads;
      const Head head(dims, s, summaries, kv_head);
      head.turn_keys(b.keys);
      for (int64_t h = kv_head * dims.group(); h < (kv_head + 1) * dims.group(); ++h) {
        weights(dims, s, head, q + s.row * dims.q_stride + h * dims.head_dim, b.keys, b.p,
                b.reciprocals);
        attend(dims, s, head, b.p, b.reciprocals, y + s.row * QC + h * dims.value_dim);
      }
    }
  });
}

void linformer_attention_vjp(ThreadPool& threads, const LinformerDims& dims, int64_t sequences,
                             const int64_t* offsets, const LinformerSegment* segment,
                             const LinformerSummary* summaries, const float* q,
                             const LinformerVjp& vjp, float* scratch) {
  const int64_t floats = linformer_vjp_scratch(dims);
  threads.parallel_for(sequences * dims.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
    const Buffers b(dims, true, scratch + worker * floats);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / dims.kv_heads;
      for (int64_t j = offsets[s]; j < offsets[s + 1]; ++j) {
        backward(dims, segment[j], summaries, i % dims.kv_heads, q, vjp, b);
      }
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
