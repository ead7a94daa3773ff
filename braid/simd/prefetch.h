#pragma once

#include <cstdint>

namespace braid::simd {

/// Wants two cache lines, `offset` bytes from `at`, in L2 soon. Any address will do.
inline void prefetch_lines(const void* at, int64_t offset) {
  const char* line = static_cast<const char*>(at) + offset;
  __builtin_prefetch(line, 0, 2);
  __builtin_prefetch(line + 64, 0, 2);
}

}  // namespace braid::simd
