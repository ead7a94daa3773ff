#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct GatedRmsNormCase {
  int64_t rows, width, groups;
};

inline std::vector<GatedRmsNormCase> gated_rms_norm_test_cases() {
  return {{1, 1, 1}, {63, 7, 1}, {65, 130, 2}, {3, 200, 8}, {33, 64, 1}, {0, 16, 1}, {100, 51, 3}};
}

inline std::vector<GatedRmsNormCase> gated_rms_norm_bench_cases() {
  return {{2048, 1536, 1}, {16, 1536, 1}, {4096, 512, 1}};
}

}  // namespace braid
