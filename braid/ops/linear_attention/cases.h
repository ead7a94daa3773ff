#pragma once

#include <cstdint>
#include <vector>

#include "braid/ops/linear_attention/linear_attention.h"

namespace braid {

enum class DecayKind : uint8_t { kNone, kConstant, kPerToken };

struct LinearAttentionCase {
  const char* name;
  std::vector<int64_t> lengths;
  LinearAttentionOptions options;
  DecayKind decay = DecayKind::kPerToken;
};

/// Lengths around the chunk, sizes that are no multiple of a vector, empty sequences, one head as
/// large as RetNet's.
inline std::vector<LinearAttentionCase> linear_attention_test_cases() {
  const LinearAttentionOptions small{.heads = 2, .key_dim = 3, .value_dim = 5};
  const LinearAttentionOptions plain{.heads = 3, .key_dim = 33, .value_dim = 24};
  const LinearAttentionOptions large{.heads = 1, .key_dim = 256, .value_dim = 512};
  const LinearAttentionOptions one{.heads = 4, .key_dim = 16, .value_dim = 1, .chunk = 16};
  std::vector<LinearAttentionCase> cases;
  for (const int64_t length : {1, 63, 64, 65, 200}) cases.push_back({"one", {length}, small});
  cases.push_back({"plain", {130}, plain, DecayKind::kConstant});
  cases.push_back({"packed", {1, 65, 0, 17, 1, 130}, plain, DecayKind::kNone});
  cases.push_back({"large", {70}, large, DecayKind::kConstant});
  cases.push_back({"normaliser", {3, 50}, one});
  return cases;
}

/// Sizes of published models: prefill, decode of 16 sequences, training.
inline std::vector<LinearAttentionCase> linear_attention_bench_cases() {
  const LinearAttentionOptions retnet{.heads = 8, .key_dim = 256, .value_dim = 512};
  const LinearAttentionOptions usual{.heads = 16, .key_dim = 64, .value_dim = 64};
  const LinearAttentionOptions of_ones{.heads = 16, .key_dim = 64, .value_dim = 1};
  return {{"prefill retnet 1.3B", {2048}, retnet, DecayKind::kConstant},
          {"decode retnet 1.3B x16", std::vector<int64_t>(16, 1), retnet, DecayKind::kConstant},
          {"prefill 16x64x64", {2048}, usual},
          {"its normaliser", {2048}, of_ones, DecayKind::kNone}};
}

}  // namespace braid
