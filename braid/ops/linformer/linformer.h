#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/paged.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// Attention to summaries: a run of R tokens is compressed to `rank` keys and values by learned
/// weights over its positions.
struct LinformerOptions {
  int64_t heads = 0;     // H
  int64_t kv_heads = 0;  // Hkv, divides H; query head h reads kv head floor(h Hkv / H)
  int64_t rank = 0;      // summaries of a run
  /// Tokens of a run, 64 or a divisor; causal. 0: a run is a whole sequence, not causal.
  int64_t block = 0;
};

/// s[a, c] = sum_r e[r, a] x[r, c] over the rows r of each run: of every complete block, or of
/// every sequence (block 0), whose rows may be fewer than e has.
///
/// x (N, C) float32, rows may be strided; e (R, rank) with R = block, or at least the longest
/// sequence; returns (runs rank, C), runs in the order of the batch. Each sum is one chain over r.
/// vjp: x and e.
Tensor linformer_summaries(Context& ctx, const Tensor& x, const Tensor& e,
                           const SequenceBatch& batch, int64_t block);

/// y_i = sum_j p_ij v_j / sum_j p_ij,  p_ij = exp(q_i . k_j / sqrt(hd)), over
///
///   block 0   the summaries of the whole sequence: every token sees every other
///   else      the tokens of the block of i up to i, those of the block before it, and the
///             summaries of all earlier blocks
///
///   q (N, H hd), k (N, Hkv hd), v (N, Hkv dv), float32, rows may be strided; k and v are absent
///   where block is 0. sk (runs rank, Hkv hd), sv (runs rank, Hkv dv) as linformer_summaries makes
///   them. y (N, H dv) new and dense.
///
/// Each sequence is whole. A token costs H (hd + dv) (rank t / block + 3 block / 2) multiply-adds.
/// Its bits depend on neither batch nor threads, nor, in blocks, on any later token. vjp: all
/// inputs; weights p are computed again. Source: Wang et al., arXiv:2006.04768 (block 0); the
/// causal form is our own.
Tensor linformer_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& sk, const Tensor& sv, const SequenceBatch& batch,
                           const LinformerOptions& options);

/// What one sequence keeps between calls: `blocks`, keys (2, block, Hkv hd) and then values
/// (2, block, Hkv dv), of which block b of the sequence is number b % 2: that being read and the
/// one before it; and pages that hold `linformer_page_floats` a token: the summaries of complete
/// blocks.
struct LinformerState {
  float* blocks = nullptr;
  PageTable summaries;
};
int64_t linformer_page_floats(const LinformerOptions& options, int64_t kv_width);

/// The causal form for sequences that continue at batch.starts, with the bits of the form above: e
/// and f (block, rank) make the summaries of keys and values. states[s] is read and left as after
/// the last row. Not differentiable.
Tensor linformer_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& e, const Tensor& f, const SequenceBatch& batch,
                           const LinformerOptions& options, std::span<const LinformerState> states);

}  // namespace braid
