#pragma once

#include "braid/core/context.h"
#include "braid/core/tensor.h"
#include "braid/ops/experts/experts.h"

namespace braid {

/// The matrices of one expert on the host, contiguous float32; or numbers that belong to their
/// elements, such as an optimiser's moments.
struct ExpertMatrices {
  Tensor in;   // (2F, D), the gate's rows first, or (F, D)
  Tensor out;  // (D, F)

  int64_t width() const { return out.dim(0); }   // D
  int64_t hidden() const { return out.dim(1); }  // F
  bool gated() const { return in.dim(0) == 2 * hidden(); }
};

/// What an expert makes of a sample of rows, on the host.
struct ExpertOutputs {
  Tensor hidden;  // (S, F), what `out` is applied to
  Tensor y;       // (S, D)
};

/// x (S, D) on the device of `ctx`; `in` and `out` are the expert's packed matrices.
ExpertOutputs evaluate_expert(Context& ctx, const Tensor& x, const Expert& expert,
                              ExpertActivation activation);

/// x y^T of two host matrices (M, K) and (N, K), on the host.
Tensor product(Context& ctx, const Tensor& x, const Tensor& y);
/// (N, M) of a host matrix (M, N).
Tensor transpose(const Tensor& x);
/// The square root of the sum of squares.
double norm_of(const Tensor& x);

}  // namespace braid
