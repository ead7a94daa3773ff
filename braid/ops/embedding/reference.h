#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// y (M, D): rows of table (V, D).
template <class T>
std::vector<T> embedding(const std::vector<int32_t>& ids, int64_t d, const std::vector<T>& table) {
  std::vector<T> y;
  for (const int32_t id : ids) {
    for (int64_t j = 0; j < d; ++j) y.push_back(table[static_cast<size_t>(id * d + j)]);
  }
  return y;
}

}  // namespace braid::reference
