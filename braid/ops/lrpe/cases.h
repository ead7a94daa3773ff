#pragma once

#include <cstdint>
#include <vector>

namespace braid::cases {

struct LrpeCase {
  int64_t tokens, heads, dim;
};

inline const std::vector<LrpeCase> kLrpeTest = {{1, 1, 1}, {3, 2, 17}, {65, 3, 5}};
inline const std::vector<LrpeCase> kLrpeBench = {{2048, 8, 128}};

}  // namespace braid::cases
