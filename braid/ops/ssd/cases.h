#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/ssd/ssd.h"

namespace braid {

struct SsdCase {
  const char* name;
  std::vector<int64_t> lengths;
  SsdOptions options;
};

/// Odd on purpose: lengths around the chunk, sizes that are no multiple of a vector, empty
/// sequences.
inline std::vector<SsdCase> ssd_test_cases() {
  const SsdOptions small{.heads = 2, .head_dim = 5, .groups = 1, .state = 3};
  const SsdOptions grouped{.heads = 4, .head_dim = 16, .groups = 2, .state = 32};
  const SsdOptions wide{.heads = 1, .head_dim = 7, .groups = 1, .state = 273};
  const SsdOptions plain{.heads = 3, .head_dim = 24, .groups = 1, .state = 65};
  std::vector<SsdCase> cases;
  for (const int64_t length : {1, 63, 64, 65, 200}) cases.push_back({"one", {length}, small});
  cases.push_back({"grouped", {200}, grouped});
  cases.push_back({"wide", {70}, wide});
  cases.push_back({"plain", {130}, plain});
  cases.push_back({"packed", {1, 65, 0, 17, 1, 130}, grouped});
  SsdOptions clamped = grouped;
  clamped.dt_min = 0.2f;
  clamped.dt_max = 1.0f;
  clamped.chunk = 16;
  cases.push_back({"clamped", {3, 50}, clamped});
  return cases;
}

/// Sizes of published models: prefill, decode of 16 sequences, training.
inline std::vector<SsdCase> ssd_bench_cases() {
  const SsdOptions m130{.heads = 24, .head_dim = 64, .groups = 1, .state = 128};
  const SsdOptions small{.heads = 8, .head_dim = 64, .groups = 1, .state = 64};
  return {{"prefill 130M", {2048}, m130},
          {"decode 130M x16", std::vector<int64_t>(16, 1), m130},
          {"train width 256", {4096}, small}};
}

}  // namespace braid
