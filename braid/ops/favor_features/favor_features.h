#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

struct FavorOptions {
  int64_t heads = 0;     // H
  int64_t dim = 0;       // K, of a head
  int64_t features = 0;  // M
  float eps = 1e-4f;     // keeps every feature positive
};

/// Positive random features of the softmax kernel (FAVOR+), so that with queries q and keys k
/// phi(q) . phi(k) is exp(q . k / sqrt(K)) in expectation, up to the stabiliser c and eps:
///
///   u = x / K^(1/4),  s_j = w_j . u - |u|^2 / 2,  phi_j = (exp(s_j - c) + eps) / sqrt(M)
///
/// x (T, H K), rows may be strided; w (M, K), dense; float32. Nothing aliases. For queries c is
/// each row's own largest s_j. It cancels against a normaliser, but for eps.
/// vjp: x, through c too. w gets no gradient: it is drawn, not learned.
///
/// Source: Choromanski et al., arXiv:2009.14794; lucidrains/performer-pytorch.
Tensor favor_queries(Context& ctx, const Tensor& x, const Tensor& w, const FavorOptions& options);

struct FavorKeys {
  Tensor features;   // (T, H M)
  Tensor log_decay;  // (T, H)
  Tensor maximum;    // (S, H)
};

/// The same for keys, whose c_t is the largest s_j of the sequence so far, so that nothing looks
/// ahead and a sequence may be cut anywhere. What was summed under c_{t-1} continues under c_t
/// times exp(log_decay_t), log_decay_t = c_{t-1} - c_t (0 at the first token): sums over keys are
/// `linear_attention` with this decay. The eps of a key shrinks with it.
///
/// Sequence s goes on from initial[s] (H); absent, or 0 in a head, stands for no token yet (a
/// maximum of 0 is kept as the smallest positive number). vjp: x and `initial`, from the gradients
/// of all three.
FavorKeys favor_keys(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& initial,
                     const SequenceBatch& batch, const FavorOptions& options);

/// The same for inference: maximum[s] (H) is read and overwritten, `maximum` of the result is
/// absent. Refuses a context with a tape.
FavorKeys favor_keys_in_place(Context& ctx, const Tensor& x, const Tensor& w,
                              std::span<float* const> maximum, const SequenceBatch& batch,
                              const FavorOptions& options);

}  // namespace braid
