#pragma once

#include <array>
#include <cstdint>

namespace braid {

struct LatentAttentionCase {
  int64_t tokens, heads, latent, nope, rope, value;
};

/// Heads that fill panels of the expanding matrix, share them and straddle them; off and on the
/// grid of pages; one head; no positions.
inline constexpr std::array<LatentAttentionCase, 7> kLatentAttentionCases = {
    {{1, 4, 16, 16, 8, 16},
     {63, 2, 64, 32, 16, 32},
     {65, 4, 40, 24, 8, 10},
     {70, 3, 24, 10, 8, 50},
     {130, 1, 104, 128, 64, 128},
     {15, 5, 8, 2, 0, 2},
     {29, 16, 512, 128, 64, 128}}};

/// DeepSeek-V2-Lite: a prompt, and its last token.
inline constexpr std::array<LatentAttentionCase, 1> kLatentAttentionBench = {
    {{1024, 16, 512, 128, 64, 128}}};

}  // namespace braid
