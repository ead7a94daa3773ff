#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "braid/core/rng.h"
#include "braid/ops/route/route.h"

namespace braid {

/// What a router does with a sample of the rows it sees.
struct RouterSample {
  Tensor x;                     // (S, D), host
  Tensor logits;                // (S, E), host
  std::vector<uint8_t> chosen;  // (S, E)
  Routing to;                   // of the rows, on the host

  int64_t rows() const { return x.dim(0); }
  int64_t experts() const { return logits.dim(1); }
  float logit(int64_t s, int64_t e) const { return logits.f32()[s * experts() + e]; }
  bool chose(int64_t s, int64_t e) const {
    return chosen[static_cast<size_t>(s * experts() + e)] != 0;
  }
  /// Tokens of the sample that chose expert e.
  int64_t load(int64_t e) const;
};

/// The router's row of an expert that takes the tokens of experts i and j, which are one function.
///
/// Per token, the merged logit that leaves y as it is, is
///
///   the logit of the one that was chosen;
///   softmax, both chosen: log(exp z_i + exp z_j) + lift
///   sigmoid, both chosen: the logit of sigmoid(z_i) + sigmoid(z_j), at most kSigmoidSum, + lift
///   neither chosen: max(z_i, z_j), below the choice as before
///
/// With it, and lift 0, every other expert keeps its weight where weights are normalised or made of
/// the chosen logits, and for a softmax over all where both were chosen; a softmax over all loses
/// the mass of the one that was not, so that all weights of the token grow by one factor. Inexact:
/// a token that had chosen both has a slot free, which its next best expert takes (a positive lift
/// keeps that one's weight small, at the cost of the others': merge_pair chooses it by what the
/// layer's outputs move by); sums of sigmoids above kSigmoidSum; and that a row w gives w x and not
/// the logit above. `base`, the mean of both rows by load, is moved to the least-squares fit of it
/// over the sample, where tokens that chose one of the two count as much as all others; for equal
/// rows that are never chosen together the move is 0.
std::vector<float> fold_rows(const RouterSample& sample, RouteScore score, int64_t i, int64_t j,
                             std::span<const float> base, double lift = 0);
inline constexpr double kSigmoidSum = 0.99;

/// Rows of the two halves of an expert that is split. The tokens that chose it are parted in two of
/// one size at the median of their first principal component; the half a token falls to keeps the
/// logit z, the other one gets z - m, with m such that in 9 of 10 tokens it falls behind all
/// experts that had not been chosen, so that one of two halves is chosen where the whole was, and
/// the rest of the choice stays. Least-squares fits of these logits: what they miss is what the
/// function changes by.
struct SplitRows {
  std::vector<float> first, second;  // (D)
  double margin = 0;                 // m
};
SplitRows split_rows(const RouterSample& sample, int64_t e, std::span<const float> row,
                     const Rng& rng);

/// The change of `row` (D) for which x (row + change) comes nearest to `target` (S) in the mean
/// square weighted by `weight`, held back by a ridge of kRidge of the mean square of an element of
/// x. Conjugate gradients; the same input gives the same bits.
std::vector<float> fit_row(const Tensor& x, std::span<const float> row,
                           std::span<const double> target, std::span<const double> weight);
inline constexpr double kRidge = 1e-2;

}  // namespace braid
