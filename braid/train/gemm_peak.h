#pragma once

#include "braid/core/context.h"
#include "braid/core/dtype.h"

namespace braid {

/// FLOP/s of the matrix product this engine trains with, at a shape that suits it: the best of a
/// few runs of (1024, 1024) x (1024, 1024), some tens of milliseconds in all. The ceiling beside
/// which a training speed is shown.
double measure_gemm_flops(Context& ctx, DType weight_dtype);

}  // namespace braid
