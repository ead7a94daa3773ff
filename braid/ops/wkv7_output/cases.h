#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct Wkv7OutputCase {
  int64_t rows, heads, head_dim;
};

inline std::vector<Wkv7OutputCase> wkv7_output_test_cases() {
  return {{1, 1, 8}, {63, 2, 24}, {65, 3, 64}, {3, 1, 128}, {33, 5, 3}};
}

inline std::vector<Wkv7OutputCase> wkv7_output_bench_cases() {
  return {{2048, 12, 64}, {1, 12, 64}};
}

}  // namespace braid
