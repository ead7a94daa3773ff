#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/favor_features/favor_features.h"

namespace braid {

struct FavorCase {
  std::vector<int64_t> lengths;
  FavorOptions options;
};

inline std::vector<FavorCase> favor_test_cases() {
  const FavorOptions small{.heads = 2, .dim = 3, .features = 5};
  const FavorOptions odd{.heads = 3, .dim = 17, .features = 63};
  return {{{1}, small}, {{63}, small}, {{65, 0, 1, 33}, odd}};
}

inline std::vector<FavorCase> favor_bench_cases() {
  return {{{2048}, {.heads = 8, .dim = 64, .features = 266}}};
}

}  // namespace braid
