#include <algorithm>

#include "braid/ops/attention/kernels.h"
#include "braid/ops/attention/pages.h"
#include "braid/ops/attention/scratch.h"
#include "braid/simd/gemm.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/attention/cpu_vjp.cpp"
#include <hwy/foreach_target.h>
#include "braid/ops/attention/exp2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// One row of 64: p <- 2^(p - lse), ds <- p (ds - delta), both zero where the key is not seen.
HWY_INLINE void score_gradients(KeyRange keys, float lse, float delta, float* p, float* ds) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V begin = hn::Set(d, static_cast<float>(keys.begin));
  const V end = hn::Set(d, static_cast<float>(keys.end));
  for (int64_t j = 0; j < kPageTokens; j += lanes) {
    const V key = hn::Iota(d, static_cast<float>(j));
    const auto seen = hn::And(hn::Ge(key, begin), hn::Lt(key, end));
    const V weight = exp2_nonpositive(d, hn::Sub(hn::Load(d, p + j), hn::Set(d, lse)));
    const V slope = hn::Mul(weight, hn::Sub(hn::Load(d, ds + j), hn::Set(d, delta)));
    hn::Store(hn::IfThenElseZero(seen, weight), d, p + j);
    hn::Store(hn::IfThenElseZero(seen, slope), d, ds + j);
  }
}

// At most eight chains over the row, then a fixed tree; count is a multiple of 8.
HWY_INLINE float dot(const float* a, const float* b, int64_t count) {
  const hn::CappedTag<float, 8> d;
  auto sum = hn::Zero(d);
  for (int64_t j = 0; j < count; j += static_cast<int64_t>(hn::Lanes(d))) {
    sum = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, b + j), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// What one (sequence, kv head) reads and writes.
struct Task {
  const AttentionDims& dims;
  const AttentionSequence& s;
  const AttentionItem& item;
  const AttentionVjpInputs& in;
  float *dq, *dk, *dv;
  const AttentionVjpScratch& at;

  int64_t token(int64_t row) const { return row / dims.group(); }
  int64_t head(int64_t row) const { return item.kv_head * dims.group() + row % dims.group(); }
  float* dk_row(int64_t t) const {
    return dk + ((s.row + t) * dims.kv_heads + item.kv_head) * dims.head_dim;
  }
  float* dv_row(int64_t t) const {
    return dv + ((s.row + t) * dims.kv_heads + item.kv_head) * dims.value_dim;
  }
};

void load_block(const Task& t, int64_t row, int64_t rows) {
  const int64_t hd = t.dims.head_dim, dv = t.dims.value_dim;
  const float scale = t.dims.scale * 1.44269504f;  // as in the forward kernel
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = t.s.row + t.token(row + r), head = t.head(row + r);
    const float* q = t.in.q + token * t.dims.q_stride + head * hd;
    const float* dy = t.in.dy + token * t.in.dy_stride + head * dv;
    for (int64_t j = 0; j < hd; ++j) t.at.q[r * hd + j] = q[j] * scale;
    std::copy_n(dy, dv, t.at.dy + r * dv);
    t.at.lse[r] = t.in.lse[token * t.dims.heads + head];
    t.at.delta[r] = dot(dy, t.in.y + (token * t.dims.heads + head) * dv, dv);
  }
  std::fill_n(t.at.dq, rows * hd, 0.0f);
}

// The part of the gradients that a block of query rows and a page of keys share.
void page_gradients(const Task& t, int64_t row, int64_t rows, int64_t base, KeyRange keys) {
  const int64_t hd = t.dims.head_dim, dv = t.dims.value_dim, n = keys.end - keys.begin;
  const float* k = key_part<float>(t.dims, t.s.k_page(base), t.item.kv_head);
  const auto* k_rows =
      static_cast<const float*>(t.s.v_page(base)) + t.item.kv_head * kPageTokens * hd;
  const auto* v = static_cast<const float*>(t.in.v_lanes[t.item.begin + base / kPageTokens]) +
                  t.item.kv_head * kPageTokens * dv;
  for (int64_t block = 0; block < kPageTokens; block += kPageBlock) {
    if (keys.end <= block || keys.begin >= block + kPageBlock) continue;
    simd::gemm({.m = rows,
                .n = kPageBlock,
                .k = hd,
                .a_row = hd,
                .a_col = 1,
                .b_row = kPageBlock,
                .c_row = kPageTokens},
               t.at.q, k + block * hd, nullptr, t.at.p + block);
    simd::gemm({.m = rows,
                .n = kPageBlock,
                .k = dv,
                .a_row = dv,
                .a_col = 1,
                .b_row = kPageBlock,
                .c_row = kPageTokens},
               t.at.dy, v + block * dv, nullptr, t.at.ds + block);
  }
  for (int64_t r = 0; r < rows; ++r) {
    score_gradients(visible_keys(t.dims, t.token(row + r), base), t.at.lse[r], t.at.delta[r],
                    t.at.p + r * kPageTokens, t.at.ds + r * kPageTokens);
  }
  const int64_t dk_stride = t.dims.kv_heads * hd, dv_stride = t.dims.kv_heads * dv;
  float* dk_at = t.dk_row(base + keys.begin);
  float* dv_at = t.dv_row(base + keys.begin);
  simd::gemm({.m = n,
              .n = dv,
              .k = rows,
              .a_row = 1,
              .a_col = kPageTokens,
              .b_row = dv,
              .c_row = dv_stride,
              .start_row = dv_stride},
             t.at.p + keys.begin, t.at.dy, dv_at, dv_at);
  simd::gemm({.m = n,
              .n = hd,
              .k = rows,
              .a_row = 1,
              .a_col = kPageTokens,
              .b_row = hd,
              .c_row = dk_stride,
              .start_row = dk_stride},
             t.at.ds + keys.begin, t.at.q, dk_at, dk_at);
  for (int64_t d = 0; d < hd; d += kPageBlock) {
    const int64_t width = std::min(kPageBlock, hd - d);
    simd::gemm({.m = rows,
                .n = width,
                .k = n,
                .a_row = kPageTokens,
                .a_col = 1,
                .b_row = width,
                .c_row = hd,
                .start_row = hd},
               t.at.ds + keys.begin, k_rows + d * kPageTokens + keys.begin * width, t.at.dq + d,
               t.at.dq + d);
  }
}

// dq, dk and dv of one (sequence, kv head): blocks of queries in rising order, and for each the
// pages that it sees in rising order.
void attend_item_vjp(const Task& t) {
  const int64_t hd = t.dims.head_dim, dv = t.dims.value_dim;
  for (int64_t i = 0; i < t.s.length; ++i) {
    std::fill_n(t.dk_row(i), hd, 0.0f);
    std::fill_n(t.dv_row(i), dv, 0.0f);
  }
  const int64_t all = t.s.length * t.dims.group();
  for (int64_t row = 0; row < all; row += kVjpBlockRows) {
    const int64_t rows = std::min(kVjpBlockRows, all - row);
    const int64_t first = t.token(row), last = t.token(row + rows - 1);
    load_block(t, row, rows);
    for (int64_t base = first_page_token(t.dims, first); base <= last; base += kPageTokens) {
      page_gradients(t, row, rows, base, visible_keys(t.dims, first, last, base));
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* dq = t.dq + ((t.s.row + t.token(row + r)) * t.dims.heads + t.head(row + r)) * hd;
      for (int64_t j = 0; j < hd; ++j) dq[j] = t.at.dq[r * hd + j] * t.dims.scale;
    }
  }
  // The queries carried log2(e), which the gradient of the keys must not.
  for (int64_t i = 0; i < t.s.length; ++i) {
    float* dk = t.dk_row(i);
    for (int64_t j = 0; j < hd; ++j) dk[j] *= 0.693147181f;
  }
}

void attend_items_vjp(const AttentionDims& dims, const AttentionSequence* sequences,
                      const AttentionItem* item, int64_t begin, int64_t end,
                      const AttentionVjpInputs& in, float* dq, float* dk, float* dv,
                      const AttentionVjpScratch& at) {
  for (int64_t i = begin; i < end; ++i) {
    attend_item_vjp({.dims = dims,
                     .s = sequences[item[i].sequence],
                     .item = item[i],
                     .in = in,
                     .dq = dq,
                     .dk = dk,
                     .dv = dv,
                     .at = at});
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(attend_items_vjp);

int64_t attention_vjp_scratch(const AttentionDims& dims) {
  ScratchCursor cursor(nullptr);
  AttentionVjpScratch(dims, cursor);
  return cursor.used();
}

void attention_vjp(ThreadPool& threads, const AttentionDims& dims,
                   const AttentionSequence* sequences, int64_t items, const AttentionItem* item,
                   int64_t grain, const AttentionVjpInputs& in, float* dq, float* dk, float* dv,
                   float* scratch) {
  const auto attend = HWY_DYNAMIC_DISPATCH(attend_items_vjp);
  const int64_t per_worker = attention_vjp_scratch(dims);
  threads.parallel_for(items, grain, [&](int64_t begin, int64_t end, int worker) {
    ScratchCursor cursor(scratch + worker * per_worker);
    const AttentionVjpScratch at(dims, cursor);
    attend(dims, sequences, item, begin, end, in, dq, dk, dv, at);
  });
}

}  // namespace braid::cpu
#endif
