#pragma once

// Include before any Highway header. Each source is compiled once per target, so only those that
// differ are kept: AVX-512, AVX2, NEON and the baseline of the architecture.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
