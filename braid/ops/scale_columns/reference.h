#pragma once

#include <span>
#include <vector>

#include "braid/ops/scale_columns/scale_columns.h"

namespace braid::reference {

template <class T>
std::vector<T> scale_columns(const std::vector<T>& x, std::span<const ColumnScale> segments) {
  std::vector<T> y;
  while (y.size() < x.size()) {
    for (const auto& [width, factor] : segments) {
      for (int64_t j = 0; j < width; ++j) y.push_back(x[y.size()] * static_cast<double>(factor));
    }
  }
  return y;
}

}  // namespace braid::reference
