#pragma once

#include <cuda_runtime.h>

#include "braid/ops/linear/kernels.h"

namespace braid::cuda {

/// The float32 product of LinearDims. As on the CPU an element is one chain of fused multiply-adds
/// over k, in order, from `start` (null: zero; may be c): its bits depend on neither m nor the tile
/// that it falls into. Rows of a and b may run along k or across it.
void sgemm(cudaStream_t stream, int multiprocessors, const LinearDims& dims, const float* a,
           const float* b, const float* start, float* c);

}  // namespace braid::cuda
