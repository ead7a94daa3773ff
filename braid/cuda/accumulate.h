#pragma once

#include <cstdint>

namespace braid::cuda {

/// y <- y + x over n > 0 float32.
void accumulate(void* queue, float* y, const float* x, int64_t n);

}  // namespace braid::cuda
