#pragma once

#include <array>
#include <cstdint>

namespace braid {

struct AttentionCase {
  int64_t tokens, heads, kv_heads, head_dim, value_dim, window;
};

/// Off and on the grid of pages, grouped heads, multi-query, windows around a page, odd widths.
inline constexpr std::array<AttentionCase, 14> kAttentionCases = {{{1, 4, 2, 16, 16, 0},
                                                                   {63, 4, 2, 16, 16, 0},
                                                                   {64, 9, 3, 64, 64, 0},
                                                                   {65, 9, 3, 64, 64, 0},
                                                                   {200, 4, 2, 64, 64, 0},
                                                                   {200, 4, 2, 64, 64, 1},
                                                                   {200, 4, 2, 64, 64, 16},
                                                                   {200, 4, 4, 80, 80, 64},
                                                                   {200, 9, 3, 24, 24, 100},
                                                                   {65, 7, 1, 8, 8, 64},
                                                                   {130, 3, 1, 128, 128, 65},
                                                                   {70, 2, 2, 256, 256, 0},
                                                                   {100, 4, 4, 24, 16, 0},
                                                                   {513, 2, 1, 40, 72, 300}}};

/// Prefill of published shapes, whole and through a window.
inline constexpr std::array<AttentionCase, 2> kAttentionBench = {
    {{1024, 9, 3, 64, 64, 0}, {2048, 8, 2, 64, 64, 256}}};

}  // namespace braid
