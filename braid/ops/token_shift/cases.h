#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct TokenShiftCase {
  std::vector<int64_t> lengths;  // of the sequences
  int64_t width, outputs;
};

inline std::vector<TokenShiftCase> token_shift_test_cases() {
  return {{{1}, 3, 1}, {{5, 0, 2}, 17, 6}, {{63, 1, 65}, 64, 2}, {{1, 1, 1}, 65, 8}, {{33}, 63, 3}};
}

inline std::vector<TokenShiftCase> token_shift_bench_cases() {
  return {{{2048}, 768, 6}, {{1}, 768, 6}, {{2048}, 768, 1}};
}

}  // namespace braid
