#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct SoftplusDecayCase {
  int64_t tokens, heads;
};

inline const std::vector<SoftplusDecayCase> kSoftplusDecayTest = {{1, 1}, {3, 17}, {65, 5}};
inline const std::vector<SoftplusDecayCase> kSoftplusDecayBench = {{2048, 32}};

}  // namespace braid::cases
