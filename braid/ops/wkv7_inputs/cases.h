#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct Wkv7InputsCase {
  int64_t rows, heads, head_dim;
  bool mix_values;
};

inline std::vector<Wkv7InputsCase> wkv7_inputs_test_cases() {
  return {
      {1, 1, 8, false}, {63, 2, 24, true}, {65, 3, 64, true}, {3, 1, 128, false}, {33, 5, 3, true}};
}

inline std::vector<Wkv7InputsCase> wkv7_inputs_bench_cases() {
  return {{2048, 12, 64, true}, {1, 12, 64, true}};
}

}  // namespace braid
