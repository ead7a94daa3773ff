#pragma once

#include <cstdint>
#include <vector>

#include "braid/train/experts/matrices.h"

namespace braid {

/// Which hidden unit of one expert does the work of which of another: unit u of the first has its
/// counterpart in unit[u] of the second, times sign[u] in up and down (a gated unit may change both
/// signs; 1 elsewhere).
struct Alignment {
  std::vector<int64_t> unit;
  std::vector<float> sign;
};

/// An expert is the same function under any order of its hidden units, so two copies may differ in
/// every element. The assignment of units is the one of the largest sum, over pairs (u, v), of
///
///   <gate_u, gate_v>/n_g + |<up_u, up_v>/n_u + <down_u, down_v>/n_d| + <c_u, c_v>/n_c
///
/// (|.| and the gate for gated experts alone), where c_u(x) = h_u(x) down_u is what the unit adds
/// to y on a sample of rows, and each n is the product of the norms of both experts' whole
/// matrices. Weights tell apart units that are silent on the sample; contributions, which no
/// scaling between up and down changes, tell apart the others.
///
/// hidden_a, hidden_b (S, F): ExpertOutputs::hidden on the same rows. Costs F^2 (2 S + 4 D)
/// operations for the products and `assign` of (F, F).
Alignment align_units(Context& ctx, const ExpertMatrices& a, const ExpertMatrices& b,
                      const Tensor& hidden_a, const Tensor& hidden_b);

/// (1 - share) a + share b', b' being b in the order and with the signs of `to`. With `squares` the
/// elements are squares (second moments), to which signs do nothing.
ExpertMatrices average(const ExpertMatrices& a, const ExpertMatrices& b, const Alignment& to,
                       double share, bool squares = false);

/// The distance of two functions on a sample: |f - g| / sqrt((|f|^2 + |g|^2) / 2), over all
/// elements of their outputs (S, D). 0: equal there; 1.41: as far as unrelated ones of one size; 2:
/// opposite. Not the cosine, which a factor between the two leaves at 1: a merged expert has one
/// size. 0 where both outputs are 0.
double relative_error(const Tensor& f, const Tensor& g);
/// Of all pairs i < j, at [i * E + j]; the other elements are 0.
std::vector<double> relative_errors(ThreadPool& threads, const std::vector<Tensor>& outputs);

}  // namespace braid
