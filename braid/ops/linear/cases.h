#pragma once

#include <array>
#include <cstdint>

namespace braid::cases {

struct LinearCase {
  int64_t m, n, k;
};

/// Tails of rows, panels and pairs.
inline constexpr std::array kLinearOdd = {
    LinearCase{1, 1, 1},      LinearCase{2, 31, 2},     LinearCase{13, 33, 63},
    LinearCase{14, 100, 65},  LinearCase{15, 33, 768},  LinearCase{63, 31, 65},
    LinearCase{65, 100, 768}, LinearCase{1, 100, 768},  LinearCase{16, 1, 63},
    LinearCase{0, 5, 3},      LinearCase{29, 40, 2100}, LinearCase{43, 257, 65}};

/// The projections of two published models, as prefill sees them.
inline constexpr std::array kLinearModel = {
    LinearCase{2048, 3352, 768}, LinearCase{2048, 768, 1536}, LinearCase{2048, 1536, 576},
    LinearCase{2048, 3072, 576}};

/// Their tied heads, as decode sees them.
inline constexpr std::array kLinearDecode = {LinearCase{1, 50288, 768}, LinearCase{4, 50288, 768},
                                             LinearCase{16, 50288, 768}};

}  // namespace braid::cases
