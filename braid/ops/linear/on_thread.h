#pragma once

#include "braid/ops/linear/kernels.h"

namespace braid::cpu {

/// `linear` on the calling thread, bit for bit: for use inside a parallel loop.
void linear_on_thread(const LinearDims& dims, const float* a, const void* b, const float* start,
                      float* c, void* scratch);

}  // namespace braid::cpu
