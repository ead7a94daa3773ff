#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// x (rows, 2 width) -> (rows, width)
template <class T>
std::vector<T> swiglu(const std::vector<T>& x, size_t width) {
  std::vector<T> y;
  for (size_t row = 0; row < x.size(); row += 2 * width) {
    for (size_t j = 0; j < width; ++j) {
      const T gate = x[row + j];
      y.push_back(gate / (1.0 + std::exp(-gate)) * x[row + width + j]);
    }
  }
  return y;
}

}  // namespace braid::reference
