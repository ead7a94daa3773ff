// Scores of a segment lie in one row a query: a column for every summary, then one for every row of
// a block, of which those past the query are masked. So a row's length, and with it the order of
// its sums, depends only on the block it lies in. Products are micro-kernels of simd/gemm.

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

// Columns of one kv head in the summaries and in the block's rows.
class Head {
 public:
  Head(const LinformerDims& dims, const LinformerSegment& segment,
       const LinformerSummary* summaries, int64_t kv_head)
      : dims_(dims), segment_(segment), summaries_(summaries + segment.summary), h_(kv_head) {}

  int64_t local_rows() const {
    return segment_.k == nullptr ? 0 : segment_.first + segment_.length;
  }
  int64_t columns() const { return dims_.columns(segment_.summaries); }
  int64_t local_column() const { return segment_.summaries * dims_.rank; }
  int64_t k_stride() const { return dims_.kv_heads * dims_.head_dim; }
  int64_t v_stride() const { return dims_.kv_heads * dims_.value_dim; }
  const float* k(int64_t summary) const { return summaries_[summary].k + h_ * dims_.head_dim; }
  const float* v(int64_t summary) const { return summaries_[summary].v + h_ * dims_.value_dim; }
  const float* local_k() const { return segment_.k + h_ * dims_.head_dim; }
  const float* local_v() const { return segment_.v + h_ * dims_.value_dim; }

  // (hd, columns) and (dv, columns): columns along the lanes. Those of rows that are not there yet
  // are zero.
  void turn_keys(float* to) const {
    const int64_t n = columns();
    for (int64_t i = 0; i < segment_.summaries; ++i) {
      simd::transpose(dims_.rank, dims_.head_dim, k(i), k_stride(), to + i * dims_.rank, n);
    }
    if (local_rows() == 0) return;
    simd::transpose(local_rows(), dims_.head_dim, local_k(), segment_.k_stride, to + local_column(),
                    n);
    clear_columns(dims_.head_dim, to);
  }
  void turn_values(float* to) const {
    const int64_t n = columns();
    for (int64_t i = 0; i < segment_.summaries; ++i) {
      simd::transpose(dims_.rank, dims_.value_dim, v(i), v_stride(), to + i * dims_.rank, n);
    }
    if (local_rows() == 0) return;
    simd::transpose(local_rows(), dims_.value_dim, local_v(), segment_.v_stride,
                    to + local_column(), n);
    clear_columns(dims_.value_dim, to);
  }

 private:
  void clear_columns(int64_t rows, float* x) const {
    const int64_t n = columns(), from = local_column() + local_rows();
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
    if (s.k != nullptr) {
      const int64_t seen = head.local_column() + s.first + i + 1;
      std::fill(row + seen, row + n, kMasked);
    }
    reciprocals[i] = 1.0f / HWY_DYNAMIC_DISPATCH(exponentials)(n, dims.scale, row);
  }
}

// One head of one segment. y: its first row and column.
void attend(const LinformerDims& dims, const LinformerSegment& s, const Head& head, const float* p,
            const float* reciprocals, float* y) {
  const int64_t n = head.columns(), dv = dims.value_dim, y_stride = dims.heads * dv;
  for (int64_t i = 0; i < s.summaries; ++i) {
    simd::gemm({.m = s.length,
                .n = dv,
                .k = dims.rank,
                .a_row = n,
                .a_col = 1,
                .b_row = head.v_stride(),
                .c_row = y_stride,
                .start_row = y_stride},
               p + i * dims.rank, head.v(i), i == 0 ? nullptr : y, y);
  }
  for (int64_t i = 0; i < s.length; ++i) {
    float* row = y + i * y_stride;
    if (s.k != nullptr) {
      // Row by row, so that not even a NaN of a later token gets in.
      simd::gemm({.m = 1,
                  .n = dv,
                  .k = s.first + i + 1,
                  .a_row = 0,
                  .a_col = 1,
                  .b_row = s.v_stride,
                  .c_row = y_stride},
                 p + i * n + head.local_column(), head.local_v(), s.summaries == 0 ? nullptr : row,
                 row);
    }
    HWY_DYNAMIC_DISPATCH(scale_row)(dv, reciprocals[i], row);
  }
}

struct Buffers {
  float *keys, *values;  // (hd, columns), (dv, columns)
  float *p, *dp;         // (rows, columns)
  float* reciprocals;    // (rows)

  Buffers(const LinformerDims& dims, bool backward, float* scratch) : keys(scratch) {
    const int64_t n = dims.columns(dims.summaries_max);
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

// Gradients of one query head h of a segment, given p, normalised, and ds in `b.dp`.
void spread(const LinformerDims& dims, const LinformerSegment& s, const Head& head, int64_t kv_head,
            int64_t h, const float* q, const LinformerVjp& g, const Buffers& b) {
  const int64_t n = head.columns(), hd = dims.head_dim, dv = dims.value_dim;
  const int64_t KC = head.k_stride(), VC = head.v_stride(), QC = dims.heads * hd;
  const float* dy = g.dy + s.row * g.dy_stride + h * dv;
  float* dq = g.dq + s.row * QC + h * hd;
  const simd::GemmDims to_dq{
      .m = s.length, .n = hd, .a_row = n, .a_col = 1, .c_row = QC, .start_row = QC};
  for (int64_t i = 0; i < s.summaries; ++i) {
    const int64_t column = i * dims.rank, run = s.summary + i;
    simd::GemmDims product = to_dq;
    product.k = dims.rank;
    product.b_row = KC;
    simd::gemm(product, b.dp + column, head.k(i), dq, dq);
    add_product_of_columns(dims.rank, hd, s.length, b.dp + column, n, q, dims.q_stride,
                           g.dsk + run * dims.rank * KC + kv_head * hd, KC);
    add_product_of_columns(dims.rank, dv, s.length, b.p + column, n, dy, g.dy_stride,
                           g.dsv + run * dims.rank * VC + kv_head * dv, VC);
  }
  if (s.k == nullptr) return;
  const int64_t rows = head.local_rows(), column = head.local_column();
  simd::GemmDims product = to_dq;
  product.k = rows;
  product.b_row = s.k_stride;
  simd::gemm(product, b.dp + column, head.local_k(), dq, dq);
  add_product_of_columns(rows, hd, s.length, b.dp + column, n, q, dims.q_stride,
                         g.dk + s.row * KC + kv_head * hd, KC);
  add_product_of_columns(rows, dv, s.length, b.p + column, n, dy, g.dy_stride,
                         g.dv + s.row * VC + kv_head * dv, VC);
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
  return (dims.head_dim + kLinformerRows) * dims.columns(dims.summaries_max) + kLinformerRows;
}

int64_t linformer_vjp_scratch(const LinformerDims& dims) {
  return linformer_scratch(dims) +
         (dims.value_dim + kLinformerRows) * dims.columns(dims.summaries_max);
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

namespace {

// Calls body(run, first column, columns) over blocks of columns of all runs.
template <class Body>
void for_each_column_block(ThreadPool& threads, const LinformerSummaryDims& dims, Body&& body) {
  constexpr int64_t kColumns = 128;
  const int64_t blocks = (dims.channels + kColumns - 1) / kColumns;
  threads.parallel_for(dims.runs * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % blocks * kColumns;
      body(i / blocks, c, std::min(kColumns, dims.channels - c));
    }
  });
}

}  // namespace

void linformer_summaries(ThreadPool& threads, const LinformerSummaryDims& dims,
                         const LinformerRun* runs, const float* e) {
  for_each_column_block(threads, dims, [&](int64_t i, int64_t c, int64_t columns) {
    simd::gemm({.m = dims.rank,
                .n = columns,
                .k = runs[i].rows,
                .a_row = 1,
                .a_col = dims.rank,
                .b_row = runs[i].stride,
                .c_row = dims.channels},
               e, runs[i].x + c, nullptr, runs[i].s + c);
  });
}

void linformer_summaries_vjp(ThreadPool& threads, const LinformerSummaryDims& dims,
                             const LinformerRun* runs, const int64_t* dx_rows, const float* e,
                             const float* ds, float* ds_turned, float* dx, float* de) {
  const int64_t C = dims.channels, rank = dims.rank;
  for_each_column_block(threads, dims, [&](int64_t i, int64_t c, int64_t columns) {
    const float* from = ds + i * rank * C + c;
    simd::gemm({.m = runs[i].rows,
                .n = columns,
                .k = rank,
                .a_row = rank,
                .a_col = 1,
                .b_row = C,
                .c_row = C},
               e, from, nullptr, dx + dx_rows[i] * C + c);
    simd::transpose(rank, columns, from, C, ds_turned + (i * C + c) * rank, rank);
  });
  constexpr int64_t kRows = 14;
  threads.parallel_for((dims.e_rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * kRows; r < std::min(end * kRows, dims.e_rows); r += kRows) {
      const int64_t count = std::min(kRows, dims.e_rows - r);
      std::fill_n(de + r * rank, count * rank, 0.0f);
      for (int64_t i = 0; i < dims.runs; ++i) {
        simd::gemm({.m = std::clamp<int64_t>(runs[i].rows - r, 0, count),
                    .n = rank,
                    .k = C,
                    .a_row = runs[i].stride,
                    .a_col = 1,
                    .b_row = rank,
                    .c_row = rank,
                    .start_row = rank},
                   runs[i].x + r * runs[i].stride, ds_turned + i * rank * C, de + r * rank,
                   de + r * rank);
      }
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
