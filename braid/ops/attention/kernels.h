#pragma once

#include <cstdint>

#include "braid/core/dtype.h"
#include "braid/core/paged.h"
#include "braid/core/thread_pool.h"

namespace braid {

// A page holds kPageTokens tokens of all kv heads of one layer. Keys lie along the lanes in blocks
// of 32; the dimensions of values in blocks of 32, the last of which may be narrower (w <= 32):
//
//   keys    f32  (Hkv, 2, hd, 32)         values  f32  (Hkv, dv / 32, 64, w)
//           bf16 (Hkv, 2, hd / 2, 32, 2)          bf16 (Hkv, dv / 32, 32, w, 2)
//
// so that scores are chains over d, outputs are chains over keys, and both read a page from its
// first byte to its last. In bfloat16 neighbours of a chain lie in pairs, as dot products take
// them.
inline constexpr int64_t kPageBlock = 32;

/// What all kernels share.
struct AttentionDims {
  int64_t heads, kv_heads, head_dim, value_dim;
  int64_t window;  // INT64_MAX: none
  float scale;
  int64_t q_stride, k_stride, v_stride;  // elements between rows; outputs are contiguous
  DType page_dtype;
  bool values_in_keys;  // the first dims of a key are its value; no pages of values

  int64_t group() const { return heads / kv_heads; }
};

/// Where a sequence lies in the batch, and its pages.
struct AttentionSequence {
  int64_t row, length, start;
  void* const* k_pages;
  void* const* v_pages;
  int64_t pages;

  void* k_page(int64_t token) const { return k_pages[(token / kPageTokens) % pages]; }
  void* v_page(int64_t token) const { return v_pages[(token / kPageTokens) % pages]; }
};

/// Query rows [begin, end) of one sequence and kv head, counted token by token and, within a
/// token, head by head of the group: row r is token r / group, head r % group.
struct AttentionItem {
  int64_t sequence, kv_head, begin, end;
};
/// Tokens [begin, end) of one sequence, all in one page.
struct AttentionSpan {
  int64_t sequence, begin, end;
};

namespace cpu {

/// Rows of an item at most.
inline constexpr int64_t kAttentionItemRows = 140;

/// Writes the batch's keys (N, Hkv * hd) and values (N, Hkv * dv) into pages. Either may be null.
void attention_append(ThreadPool& threads, const AttentionDims& dims,
                      const AttentionSequence* sequences, int64_t spans, const AttentionSpan* span,
                      const float* k, const float* v);

/// Scratch floats per worker.
int64_t attention_scratch(const AttentionDims& dims);
/// q (N, H * hd), y (N, H * dv); `lse` (N, H) may be null: the base-2 logarithm of the sum of
/// exponentials. `grain`: items to a task.
void attention(ThreadPool& threads, const AttentionDims& dims, const AttentionSequence* sequences,
               int64_t items, const AttentionItem* item, int64_t grain, const float* q, float* y,
               float* lse, float* scratch);

struct AttentionVjpInputs {
  const float* q;        // (N, H * hd), strided as in dims
  const float* y;        // (N, H * dv)
  const float* lse;      // (N, H)
  const float* dy;       // (N, H * dv)
  int64_t dy_stride;     // elements between rows of dy
  void* const* v_lanes;  // values in the layout of keys, all sequences' pages one after another
};

int64_t attention_vjp_scratch(const AttentionDims& dims);
/// With the weights p recomputed from `lse`, D = <dy, y> for each row and head, and sums over the
/// rows that see a key:
///
///   dv_j = sum_i p_ij dy_i         ds_ij = p_ij (dy_i . v_j - D_i)
///   dq_i = scale sum_j ds_ij k_j   dk_j = scale sum_i ds_ij q_i
///
/// Sequences carry keys in k_pages (layout of keys) and in v_pages (keys in the layout of values),
/// all float32. An item is one sequence and kv head, `begin` its first page in v_lanes; its
/// gradients are summed by one worker in one order. dq (N, H * hd), dk (N, Hkv * hd),
/// dv (N, Hkv * dv), contiguous.
void attention_vjp(ThreadPool& threads, const AttentionDims& dims,
                   const AttentionSequence* sequences, int64_t items, const AttentionItem* item,
                   int64_t grain, const AttentionVjpInputs& in, float* dq, float* dk, float* dv,
                   float* scratch);

}  // namespace cpu
}  // namespace braid
