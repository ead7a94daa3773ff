#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct LongConvCase {
  std::vector<int64_t> lengths;
  int64_t channels, taps;
};

/// Around the block of 64, channels off the group of 16, filters shorter and longer than sequences.
inline std::vector<LongConvCase> long_conv_test_cases() {
  return {{{1}, 1, 1},          {{63}, 5, 63},        {{64}, 16, 80},  {{65}, 33, 65},
          {{129, 0, 1}, 7, 66}, {{200, 70}, 20, 200}, {{130}, 17, 10}, {{600, 3}, 3, 400}};
}

inline std::vector<LongConvCase> long_conv_bench_cases() {
  return {{{2048}, 768, 8192}, {{8192}, 768, 8192}, {std::vector<int64_t>(16, 1), 768, 8192}};
}

}  // namespace braid
