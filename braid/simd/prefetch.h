#pragma once

#include <cstdint>

namespace braid::simd {

/// Wants two cache lines in L2 soon.
inline void prefetch_lines(const char* at) {
  __builtin_prefetch(at, 0, 2);
  __builtin_prefetch(at + 64, 0, 2);
}

/// For an op that takes a part of each row of a batch: rows lie pages apart, further than the
/// hardware looks ahead, so the part that is read at `at` is asked for some rows early. `stride`
/// elements lead to the next row. Past the last row nothing comes of it.
inline void prefetch_row_ahead(const float* at, int64_t stride, int64_t rows = 8) {
  __builtin_prefetch(at + rows * stride);
}

}  // namespace braid::simd
