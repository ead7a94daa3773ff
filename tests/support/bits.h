#pragma once

namespace braid::test {

/// True where equal functions must be equal bit for bit (AVX-512); elsewhere they are compared to
/// rounding.
inline bool bits_are_promised() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#else
  return false;
#endif
}

}  // namespace braid::test
