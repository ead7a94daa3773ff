#pragma once

namespace braid::simd {

/// Wants two cache lines in L2 soon.
inline void prefetch_lines(const char* at) {
  __builtin_prefetch(at, 0, 2);
  __builtin_prefetch(at + 64, 0, 2);
}

}  // namespace braid::simd
