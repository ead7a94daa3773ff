#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct LinformerCase {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, head_dim, value_dim, rank, block;
};

/// Blocks that do and do not end with the sequence, heads off the vector, shared heads; block 0 is
/// the form over whole sequences.
inline std::vector<LinformerCase> linformer_test_cases() {
  return {{{1}, 1, 1, 8, 8, 1, 8},           {{63, 0, 64}, 2, 1, 8, 16, 3, 16},
          {{65, 8}, 4, 2, 16, 8, 5, 8},      {{200, 3}, 2, 2, 24, 24, 16, 64},
          {{130, 1}, 3, 3, 5, 7, 2, 32},     {{1}, 1, 1, 8, 8, 1, 0},
          {{65, 0, 130}, 4, 2, 16, 8, 5, 0}, {{63, 64}, 2, 1, 7, 9, 33, 0}};
}

inline std::vector<LinformerCase> linformer_bench_cases() {
  return {{{2048}, 12, 12, 64, 64, 16, 64}, {{2048}, 12, 12, 64, 64, 256, 0}};
}

}  // namespace braid
