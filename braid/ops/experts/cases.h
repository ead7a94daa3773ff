#pragma once

#include <array>
#include <cstdint>

namespace braid::cases {

struct Experts {
  int64_t tokens, slots, experts, width, hidden;
};

/// Tails of rows, panels and pairs; one expert for all; more experts than rows.
inline constexpr std::array kExpertsOdd = {
    Experts{1, 1, 1, 1, 1},     Experts{1, 2, 5, 63, 33},    Experts{7, 3, 4, 65, 31},
    Experts{40, 2, 1, 33, 65},  Experts{63, 3, 9, 64, 32},   Experts{65, 4, 5, 31, 63},
    Experts{130, 2, 3, 70, 40}, Experts{2, 4, 100, 100, 48}, Experts{0, 2, 3, 5, 7}};

/// 256 experts of which a token chooses 8: one token, a few, many.
inline constexpr int64_t kExpertsDecode[] = {1, 16, 64};
inline constexpr Experts kExpertsModel = {2048, 8, 256, 512, 128};

}  // namespace braid::cases
