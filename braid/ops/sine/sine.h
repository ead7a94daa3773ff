#pragma once

#include "braid/core/context.h"

namespace braid {

/// y[i, j] = sin(frequency[j] x[i, j]), the activation of implicit filters.
///
/// x (N, F) float32, rows may be strided; frequency (F); y (N, F), new and dense. Good to a few
/// units in the last place for |frequency x| up to 39000. vjp, with c = cos(frequency[j] x[i, j]):
/// dx = frequency c dy, and dfrequency[j] = sum_i x c dy, one chain over the rows.
/// Source: Romero et al., arXiv:2102.02611; Poli et al., arXiv:2302.10866 (`Sin`).
Tensor sine(Context& ctx, const Tensor& x, const Tensor& frequency);

}  // namespace braid
