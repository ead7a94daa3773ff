#pragma once

#include <cstdint>

#include "braid/ops/experts/experts.h"

namespace braid {

/// Evaluates the experts of the stack's sublayers in the place of the op `experts`, for instance
/// where they are spread over several processes.
class ExpertHost {
 public:
  virtual ~ExpertHost() = default;

  /// y[n] = sum_j weights[n, j] f(x[n]; expert ids[n, j]), the bits of the op. `layer` is the
  /// sublayer's SublayerConfig::ordinal; x (N, D) f32, ids (N, k) i32, -1 for none, weights (N, k)
  /// f32, y (N, D). The sublayer's own weights may be absent. Refused under a tape.
  virtual Tensor evaluate(Context& ctx, int64_t layer, const Tensor& x, const Tensor& ids,
                          const Tensor& weights, ExpertActivation activation) = 0;
};

}  // namespace braid
