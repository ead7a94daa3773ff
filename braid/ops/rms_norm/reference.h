#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// x (rows, width), w (width).
template <class T>
std::vector<T> rms_norm(const std::vector<T>& x, const std::vector<T>& w, double eps) {
  const size_t width = w.size();
  std::vector<T> y(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    T squares{};
    for (size_t j = 0; j < width; ++j) squares += x[row + j] * x[row + j];
    const T rms = std::sqrt(squares / static_cast<double>(width) + eps);
    for (size_t j = 0; j < width; ++j) y[row + j] = x[row + j] / rms * w[j];
  }
  return y;
}

}  // namespace braid::reference
