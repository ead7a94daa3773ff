#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/dtype.h"
#include "braid/core/paged.h"
#include "braid/core/sequence_batch.h"
#include "braid/core/tensor.h"
#include "braid/ops/linear/weight.h"

namespace braid {

struct LatentAttentionOptions {
  int64_t heads = 0;  // H
  int64_t nope = 0;   // P: dimensions of a query and key without positions
  int64_t value = 0;  // V: dimensions of a value
  double scale = 0;   // of the scores
};

/// The latents of one sequence, in pages of kPageTokens tokens (the keys' layout of
/// ops/attention/kernels.h).
struct LatentCache {
  PageTable pages;
  DType dtype = DType::kF32;  // or kBF16
};

/// Causal attention to keys and values that every head expands from one latent vector a token,
/// without expanding them:
///
///   head h:  k_j = [W_k^h c_j | r_j],  v_j = W_v^h c_j
///            y_i = sum_j p_ij v_j / sum_j p_ij,  p_ij = exp(scale q_i . k_j)  over j <= i
///   as       q_i . k_j = (W_k^h^T a_i) . c_j + b_i . r_j  for q_i = [a_i | b_i]
///            y_i = W_v^h (sum_j p_ij c_j / sum_j p_ij)
///
///   q       (N, H * (P + R)) float32, each head [a | b], b with its positions; rows may be strided
///   latent  (N, C + R) float32, [c | r], r with its positions and the same for all heads
///   kv_b    (H * (P + V), C), each head's W_k above its W_v; best packed both ways
///   y       (N, H * V), contiguous
///
/// P, R and V are even, C and C + R multiples of 8 up to 1024. All heads share the latents as one
/// wide key, whose first C dimensions are the value; a query's bits depend neither on the cut, the
/// batch nor the threads, and work space is bounded. Not differentiable.
/// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options);

/// The same for sequences that continue: rounds the latents to the dtype of `caches` (one per
/// sequence) and writes them at positions starts[s] + i. With float32 caches the bits are those of
/// the form above.
Tensor latent_attention(Context& ctx, const Tensor& q, const Tensor& latent, const Weight& kv_b,
                        const SequenceBatch& batch, const LatentAttentionOptions& options,
                        std::span<const LatentCache> caches);

}  // namespace braid
