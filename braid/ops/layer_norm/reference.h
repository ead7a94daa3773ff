#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// x (rows, width), w and b (width).
template <class T>
std::vector<T> layer_norm(const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& b,
                          double eps) {
  const size_t width = w.size();
  const auto count = static_cast<double>(width);
  std::vector<T> y(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    T mean{}, variance{};
    for (size_t j = 0; j < width; ++j) mean += x[row + j] / count;
    for (size_t j = 0; j < width; ++j) {
      variance += (x[row + j] - mean) * (x[row + j] - mean) / count;
    }
    for (size_t j = 0; j < width; ++j) {
      y[row + j] = (x[row + j] - mean) / std::sqrt(variance + eps) * w[j] + b[j];
    }
  }
  return y;
}

}  // namespace braid::reference
