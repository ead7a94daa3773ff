#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

inline const std::vector<int64_t> kAdamWTest = {1, 15, 16, 63, 65, 16384, 40001};
inline const std::vector<int64_t> kAdamWBench = {1 << 14, 1 << 24};

}  // namespace braid::cases
