#pragma once

#include <array>
#include <cstdint>

namespace braid {

struct RopeCase {
  int64_t tokens, heads, head_dim, rotary_dim;
  bool interleaved;
};

/// Odd sizes, partial rotation, tails of a vector, both pairings.
inline constexpr std::array<RopeCase, 9> kRopeCases = {{{1, 1, 8, 8, false},
                                                        {3, 2, 64, 64, false},
                                                        {5, 3, 16, 16, true},
                                                        {63, 9, 64, 64, false},
                                                        {65, 2, 80, 40, false},
                                                        {65, 2, 80, 36, true},
                                                        {7, 1, 48, 2, false},
                                                        {33, 4, 128, 128, true},
                                                        {1000, 3, 24, 22, false}}};

/// Decode and prefill.
inline constexpr std::array<RopeCase, 2> kRopeBench = {
    {{1, 9, 64, 64, false}, {2048, 9, 64, 64, false}}};

}  // namespace braid
