#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/gated_delta_rule/gated_delta_rule.h"

namespace braid {

struct GatedDeltaCase {
  const char* name;
  std::vector<int64_t> lengths;
  GatedDeltaOptions options;
};

/// Lengths around the chunk, sizes that are no multiple of a vector, empty sequences.
inline std::vector<GatedDeltaCase> gated_delta_test_cases() {
  const GatedDeltaOptions small{.heads = 2, .key_heads = 1, .key_dim = 3, .value_dim = 5};
  const GatedDeltaOptions grouped{.heads = 4, .key_heads = 2, .key_dim = 16, .value_dim = 33};
  const GatedDeltaOptions wide{.heads = 1, .key_heads = 1, .key_dim = 65, .value_dim = 130};
  GatedDeltaOptions short_chunk = grouped;
  short_chunk.chunk = 16;
  std::vector<GatedDeltaCase> cases;
  for (const int64_t length : {1, 63, 64, 65, 200}) cases.push_back({"one", {length}, small});
  cases.push_back({"packed", {1, 65, 0, 17, 1, 130}, grouped});
  cases.push_back({"wide", {70}, wide});
  cases.push_back({"short chunk", {3, 50}, short_chunk});
  return cases;
}

/// The sizes of Qwen3-Next: prefill, decode of 16 sequences.
inline std::vector<GatedDeltaCase> gated_delta_bench_cases() {
  const GatedDeltaOptions qwen{.heads = 32, .key_heads = 16, .key_dim = 128, .value_dim = 128};
  return {{"prefill qwen3-next", {1024}, qwen},
          {"decode qwen3-next x16", std::vector<int64_t>(16, 1), qwen}};
}

}  // namespace braid
