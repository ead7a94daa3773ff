#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct ShortConvCase {
  std::vector<int64_t> lengths;
  int64_t channels, width;
};

/// Prompts shorter than the window, empty sequences, channels off the vector and the block.
inline std::vector<ShortConvCase> short_conv_test_cases() {
  return {{{1}, 1, 4},   {{2}, 5, 4},     {{3}, 16, 4},      {{63}, 65, 4}, {{65, 0, 1, 2}, 7, 4},
          {{64}, 33, 2}, {{9, 3}, 20, 3}, {{12, 1}, 130, 8}, {{20}, 40, 16}};
}

inline std::vector<ShortConvCase> short_conv_bench_cases() {
  return {{{2048}, 1792, 4}, {std::vector<int64_t>(16, 1), 1792, 4}, {{4096}, 640, 4}};
}

}  // namespace braid
