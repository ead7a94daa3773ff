#include <algorithm>
#include <cmath>
#include <cstring>

#include "braid/ops/attention/kernels.h"
#include "braid/ops/attention/pages.h"
#include "braid/ops/attention/pair_gemm.h"
#include "braid/ops/attention/scratch.h"
#include "braid/simd/bf16_dot.h"
#include "braid/simd/gemm.h"

// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/attention/cpu.cpp"
#include <hwy/foreach_target.h>
#include "braid/ops/attention/exp2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// The scores of one row; -inf where the row does not see the key.
HWY_INLINE void mask_scores(KeyRange keys, float* s) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V begin = hn::Set(d, static_cast<float>(keys.begin));
  const V end = hn::Set(d, static_cast<float>(keys.end));
  for (int64_t j = 0; j < kPageTokens; j += lanes) {
    const V key = hn::Iota(d, static_cast<float>(j));
    const auto seen = hn::And(hn::Ge(key, begin), hn::Lt(key, end));
    hn::Store(hn::IfThenElse(seen, hn::Load(d, s + j), hn::Neg(hn::Inf(d))), d, s + j);
  }
}

// max <- max(max, s) over one row of 64.
HWY_INLINE float max_score(float max, const float* s) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V m = hn::Set(d, max);
  for (int64_t j = 0; j < kPageTokens; j += lanes) m = hn::Max(m, hn::Load(d, s + j));
  return hn::GetLane(hn::MaxOfLanes(d, m));
}

// s <- 2^(s - max), and the partial sums: sum <- sum * decay + s.
HWY_INLINE void weigh_scores(float max, float decay, float* s, float* sum) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V m = hn::Set(d, max);
  V total = hn::Mul(hn::Load(d, sum), hn::Set(d, decay));
  for (int64_t j = 0; j < kPageTokens; j += lanes) {
    const V p = exp2_nonpositive(d, hn::Sub(hn::Load(d, s + j), m));
    hn::Store(p, d, s + j);
    total = hn::Add(total, p);
  }
  hn::Store(total, d, sum);
}

HWY_INLINE void scale_row(float by, int64_t count, float* x) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + j), hn::Set(d, by)), d, x + j);
  }
  for (; j < count; ++j) x[j] *= by;
}

// The running maximum moves; weights and sums are taken against the new one, and what has been
// gathered so far decays. A page that a row does not see leaves all of the row's bits alone: its
// weights are zero and the decay is one.
template <class RangeOf>
HWY_INLINE void softmax_block(const AttentionScratch& at, int64_t row, int64_t rows, bool whole,
                              int64_t value_dim, RangeOf range_of) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float decay[kLaneSlots], max[kLaneSlots];
  for (int64_t r = 0; r < kLaneSlots; ++r) max[r] = decay[r] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    float* s = at.s + r * kPageTokens;
    if (!whole) mask_scores(range_of(row + r), s);
    decay[r] = at.max[row + r];
    max[r] = max_score(decay[r], s);
    at.max[row + r] = max[r];
  }
  for (int64_t r = 0; r < kLaneSlots; r += lanes) {
    const V moved = hn::Sub(hn::Load(d, decay + r), hn::Load(d, max + r));
    hn::Store(exp2_nonpositive(d, moved), d, decay + r);
  }
  for (int64_t r = 0; r < rows; ++r) {
    weigh_scores(max[r], decay[r], at.s + r * kPageTokens, at.sum + (row + r) * kLaneSlots);
    if (decay[r] != 1.0f) scale_row(decay[r], value_dim, at.y + (row + r) * value_dim);
  }
}

void load_queries(const AttentionDims& dims, const AttentionSequence& s, const AttentionItem& item,
                  AttentionMath math, const float* q, const AttentionScratch& at) {
  const int64_t hd = dims.head_dim, group = dims.group(), rows = item.end - item.begin;
  const float scale = dims.scale * 1.44269504f;  // of base-2 exponentials
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = (item.begin + r) / group;
    const int64_t head = item.kv_head * group + (item.begin + r) % group;
    const float* from = q + (s.row + token) * dims.q_stride + head * hd;
    // Rounded from the key scratch, which is free until the first page.
    float* to = math == AttentionMath::kPairs ? at.k : at.q + r * hd;
    for (int64_t j = 0; j < hd; ++j) to[j] = from[j] * scale;
    if (math == AttentionMath::kRounded) {
      for (int64_t j = 0; j < hd; ++j) to[j] = to_float(to_bf16(to[j]));
    } else if (math == AttentionMath::kPairs) {
      round_rows(1, hd, hd, to, reinterpret_cast<BF16*>(at.q) + r * hd);
    }
  }
  std::fill_n(at.max, rows, kNoScore);
  std::fill_n(at.sum, rows * kLaneSlots, 0.0f);
  std::fill_n(at.y, rows * dims.value_dim, 0.0f);
}

// One kv head's part of a page, as the products take it.
struct Part {
  const float *k, *v;
  const BF16 *k_pairs, *v_pairs;
};

// One block of keys' first dimensions, `width` of them, as pairs of keys: pairs of dimensions move
// as one pattern to the row of their key, then the halves of two rows are interleaved.
void values_of_key_block(int64_t width, const BF16* keys, BF16* values) {
  constexpr int64_t kPairs = kPageBlock / 2;
  const hn::CappedTag<uint32_t, kPairs> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto low = hn::Set(d, 0xFFFFu), high = hn::Set(d, 0xFFFF0000u);
  HWY_ALIGN float rows[kPageBlock * kPairs] = {};
  HWY_ALIGN uint32_t both[kPageBlock];
  simd::transpose(width / 2, kPageBlock, reinterpret_cast<const float*>(keys), kPageBlock, rows,
                  kPairs);
  const auto* pairs = reinterpret_cast<const uint32_t*>(rows);
  for (int64_t i = 0; i < kPageBlock; i += 2, values += 2 * width) {
    auto* to = width == kPageBlock ? reinterpret_cast<uint32_t*>(values) : both;
    for (int64_t j = 0; j < kPairs; j += lanes) {
      const auto even = hn::Load(d, pairs + i * kPairs + j);
      const auto odd = hn::Load(d, pairs + (i + 1) * kPairs + j);
      hn::StoreInterleaved2(hn::Or(hn::And(even, low), hn::ShiftLeft<16>(odd)),
                            hn::Or(hn::ShiftRight<16>(even), hn::And(odd, high)), d, to + 2 * j);
    }
    if (to == both) std::memcpy(static_cast<void*>(values), both, static_cast<size_t>(width) * 4);
  }
}

// The neighbour of the last of `written` tokens is cleared: what nobody wrote may be NaN.
void values_of_keys(const AttentionDims& dims, const BF16* from, int64_t written, BF16* to) {
  for (int64_t d = 0; d < dims.value_dim; d += kPageBlock) {
    const int64_t width = std::min(kPageBlock, dims.value_dim - d);
    for (int64_t key = 0; key < written; key += kPageBlock) {
      values_of_key_block(width, from + key * dims.head_dim + d * kPageBlock,
                          to + d * kPageTokens + key * width);
    }
    if (written % 2 == 0) continue;
    BF16* last = to + d * kPageTokens + (written - 1) * width;
    for (int64_t j = 0; j < width; ++j) last[2 * j + 1] = BF16{};
  }
}

// The same where the values are in the keys: they are laid out anew for each item and page, which
// is little beside the products of many rows.
Part load_keys_with_values(const AttentionDims& dims, const AttentionSequence& s, int64_t base,
                           int64_t kv_head, AttentionMath math, const AttentionScratch& at) {
  if (math == AttentionMath::kF32) {
    const auto* k = key_part<float>(dims, s.k_page(base), kv_head);
    cpu::values_of_keys(dims, k, at.v);
    return {.k = k, .v = at.v, .k_pairs = nullptr, .v_pairs = nullptr};
  }
  const auto* k_pairs = key_part<BF16>(dims, s.k_page(base), kv_head);
  auto* v_pairs = reinterpret_cast<BF16*>(at.v);
  if (math == AttentionMath::kRounded) {
    unpack_keys(dims, k_pairs, at.k);
    cpu::values_of_keys(dims, at.k, at.v);
  } else {
    values_of_keys(dims, k_pairs, std::min(kPageTokens, s.start + s.length - base), v_pairs);
  }
  return {.k = at.k, .v = at.v, .k_pairs = k_pairs, .v_pairs = v_pairs};
}

Part load_part(const AttentionDims& dims, const AttentionSequence& s, int64_t base, int64_t kv_head,
               AttentionMath math, const AttentionScratch& at) {
  if (dims.values_in_keys) return load_keys_with_values(dims, s, base, kv_head, math, at);
  if (math == AttentionMath::kF32) {
    return {.k = key_part<float>(dims, s.k_page(base), kv_head),
            .v = value_part<float>(dims, s.v_page(base), kv_head)};
  }
  const Part part{.k = at.k,
                  .v = at.v,
                  .k_pairs = key_part<BF16>(dims, s.k_page(base), kv_head),
                  .v_pairs = value_part<BF16>(dims, s.v_page(base), kv_head)};
  if (math == AttentionMath::kRounded) {
    unpack_keys(dims, part.k_pairs, at.k);
    unpack_values(dims, part.v_pairs, at.v);
  }
  return part;
}

// Asks for a page ahead of time: the few rows of a decode step would wait for it.
void prefetch_part(const AttentionDims& dims, const AttentionSequence& s, int64_t base,
                   int64_t kv_head) {
  constexpr int64_t kLine = 64;
  const auto size = static_cast<int64_t>(size_of(dims.page_dtype)) * kPageTokens;
  const auto* k = static_cast<const char*>(s.k_page(base)) + kv_head * dims.head_dim * size;
  for (int64_t i = 0; i < dims.head_dim * size; i += kLine) __builtin_prefetch(k + i, 0, 2);
  if (dims.values_in_keys) return;
  const auto* v = static_cast<const char*>(s.v_page(base)) + kv_head * dims.value_dim * size;
  for (int64_t i = 0; i < dims.value_dim * size; i += kLine) __builtin_prefetch(v + i, 0, 2);
}

// s <- q k^T for `count` rows from `row` and those blocks of keys that any of them sees.
void score_block(const AttentionDims& dims, const Part& part, int64_t row, int64_t count,
                 KeyRange keys, AttentionMath math, const AttentionScratch& at) {
  const int64_t hd = dims.head_dim;
  for (int64_t block = 0; block < kPageTokens; block += kPageBlock) {
    if (keys.end <= block || keys.begin >= block + kPageBlock) continue;
    if (math == AttentionMath::kPairs) {
      pair_gemm({.m = count,
                 .n = kPageBlock,
                 .pairs = hd / 2,
                 .a_row = hd / 2,
                 .b_row = kPageBlock,
                 .c_row = kPageTokens,
                 .accumulate = false},
                reinterpret_cast<const BF16*>(at.q) + row * hd, part.k_pairs + block * hd,
                at.s + block);
    } else {
      simd::gemm({.m = count,
                  .n = kPageBlock,
                  .k = hd,
                  .a_row = hd,
                  .a_col = 1,
                  .b_row = kPageBlock,
                  .c_row = kPageTokens},
                 at.q + row * hd, part.k + block * hd, nullptr, at.s + block);
    }
  }
}

// y <- y + p v for the keys that any of the rows sees; the weights of the others are zero.
void value_block(const AttentionDims& dims, const Part& part, int64_t row, int64_t count,
                 KeyRange keys, AttentionMath math, const AttentionScratch& at) {
  const int64_t dv = dims.value_dim, first = keys.begin / 2, end = (keys.end + 1) / 2;
  BF16* pairs = reinterpret_cast<BF16*>(at.p);
  if (math == AttentionMath::kPairs) {
    round_rows(count, kPageTokens, kPageTokens, at.s, pairs);
  } else if (math == AttentionMath::kRounded) {
    for (int64_t j = 0; j < count * kPageTokens; ++j) at.s[j] = to_float(to_bf16(at.s[j]));
  }
  for (int64_t d = 0; d < dv; d += kPageBlock) {
    const int64_t width = std::min(kPageBlock, dv - d), block = d * kPageTokens;
    float* y = at.y + row * dv + d;
    if (math == AttentionMath::kPairs) {
      pair_gemm({.m = count,
                 .n = width,
                 .pairs = end - first,
                 .a_row = kPageTokens / 2,
                 .b_row = width,
                 .c_row = dv,
                 .accumulate = true},
                pairs + 2 * first, part.v_pairs + block + 2 * first * width, y);
    } else {
      simd::gemm({.m = count,
                  .n = width,
                  .k = keys.end - keys.begin,
                  .a_row = kPageTokens,
                  .a_col = 1,
                  .b_row = width,
                  .c_row = dv,
                  .start_row = dv},
                 at.s + keys.begin, part.v + block + keys.begin * width, y, y);
    }
  }
}

void store_outputs(const AttentionDims& dims, const AttentionSequence& s, const AttentionItem& item,
                   const AttentionScratch& at, float* y, float* lse) {
  const D d;
  const int64_t dv = dims.value_dim, group = dims.group(), rows = item.end - item.begin;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = (item.begin + r) / group;
    const int64_t head = item.kv_head * group + (item.begin + r) % group;
    const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, at.sum + r * kLaneSlots)));
    const int64_t out = (s.row + token) * dims.heads + head;
    const float inverse = 1.0f / sum;
    for (int64_t j = 0; j < dv; ++j) y[out * dv + j] = at.y[r * dv + j] * inverse;
    if (lse != nullptr) lse[out] = at.max[r] + std::log2(sum);
  }
}

void attend_item(const AttentionDims& dims, const AttentionSequence& s, const AttentionItem& item,
                 AttentionMath math, const float* q, float* y, float* lse,
                 const AttentionScratch& at) {
  const int64_t group = dims.group(), rows = item.end - item.begin;
  const auto position = [&](int64_t r) { return s.start + (item.begin + r) / group; };
  load_queries(dims, s, item, math, q, at);
  const int64_t last = position(rows - 1);
  for (int64_t base = first_page_token(dims, position(0)); base <= last; base += kPageTokens) {
    const Part part = load_part(dims, s, base, item.kv_head, math, at);
    const bool streams = rows <= kBlockRows && base + kPageTokens <= last;
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - row);
      const KeyRange first = visible_keys(dims, position(row), base);
      const KeyRange final = visible_keys(dims, position(row + count - 1), base);
      const KeyRange keys{.begin = first.begin, .end = final.end};
      if (keys.empty()) continue;
      const bool whole = final.begin == 0 && first.end == kPageTokens;
      if (streams) prefetch_part(dims, s, base + kPageTokens, item.kv_head);
      score_block(dims, part, row, count, keys, math, at);
      softmax_block(at, row, count, whole, dims.value_dim,
                    [&](int64_t r) { return visible_keys(dims, position(r), base); });
      value_block(dims, part, row, count, keys, math, at);
    }
  }
  store_outputs(dims, s, item, at, y, lse);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(attend_item);

int64_t attention_scratch(const AttentionDims& dims) {
  ScratchCursor cursor(nullptr);
  AttentionScratch(dims, cursor);
  return cursor.used();
}

void attention(ThreadPool& threads, const AttentionDims& dims, const AttentionSequence* sequences,
               int64_t items, const AttentionItem* item, int64_t grain, const float* q, float* y,
               float* lse, float* scratch) {
  const auto attend = HWY_DYNAMIC_DISPATCH(attend_item);
  const int64_t per_worker = attention_scratch(dims);
  const AttentionMath math = dims.page_dtype == DType::kF32 ? AttentionMath::kF32
                             : simd::uses_bf16_dot()        ? AttentionMath::kPairs
                                                            : AttentionMath::kRounded;
  threads.parallel_for(items, grain, [&](int64_t begin, int64_t end, int worker) {
    ScratchCursor cursor(scratch + worker * per_worker);
    const AttentionScratch at(dims, cursor);
    for (int64_t i = begin; i < end; ++i) {
      attend(dims, sequences[item[i].sequence], item[i], math, q, y, lse, at);
    }
  });
}

}  // namespace braid::cpu
#endif
