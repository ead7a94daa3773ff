#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/dtype.h"
#include "braid/core/paged.h"
#include "braid/core/sequence_batch.h"
#include "braid/core/tensor.h"

namespace braid {

struct AttentionOptions {
  int64_t heads = 0;     // H
  int64_t kv_heads = 0;  // Hkv, divides H; query head h reads kv head floor(h Hkv / H)
  int64_t window = 0;    // keys a query sees, itself included; 0: all before it
  double scale = 0;      // of the scores; 0: hd^-0.5
  /// Above 0 the values are the first `values_in_keys` dimensions of the keys: v and the pages of
  /// v are absent, and there is neither a window nor a gradient.
  int64_t values_in_keys = 0;
};

/// Keys and values of one sequence, in pages of kPageTokens tokens (layout: kernels.h).
struct KvCache {
  PageTable k, v;
  DType dtype = DType::kF32;  // or kBF16
};

/// Bytes of one page of keys, or of values: kPageTokens * kv_heads * head_dim * size_of(dtype).
int64_t attention_page_bytes(int64_t kv_heads, int64_t head_dim, DType dtype);

/// Causal softmax attention with grouped heads, over all keys or a sliding window.
///
///   y_i = sum_j p_ij v_j / sum_j p_ij,  p_ij = exp(scale q_i . k_j)  over j <= i, i - j < window
///
///   q (N, H * hd), k (N, Hkv * hd), v (N, Hkv * dv), float32, rows may be strided; hd and dv are
///   multiples of 8 up to 1024. y (N, H * dv), contiguous.
///
/// Each sequence of the batch is whole: its first row is its first key, whatever `starts` says.
/// Records its vjp, which keeps y and one number per row and head, and recomputes the rest.
///
/// Keys are taken 64 at a time on the sequence's grid, in rising order (Milakov and Gimelshein,
/// arXiv 1805.02867; Dao et al., arXiv 2205.14135), so a query's bits depend neither on the cut,
/// the batch nor the threads, and memory is O(N).
Tensor attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                 const SequenceBatch& batch, const AttentionOptions& options);

/// The same for sequences that continue: rounds this batch's keys and values to the dtype of
/// `caches` (one per sequence, all of one dtype), writes them at positions starts[s] + i, and lets
/// every query see what is visible of its whole past. With float32 caches the bits are those of the
/// form above. Not differentiable.
///
/// Without a window a table must hold all tokens. With one it may be a ring of pages that covers
/// window - 1 tokens before the page being written: 64 count >= window + 63.
Tensor attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                 const SequenceBatch& batch, const AttentionOptions& options,
                 std::span<const KvCache> caches);

}  // namespace braid
