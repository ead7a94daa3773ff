#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// x (N, F) row-major, frequency (F).
template <class T>
std::vector<T> sine(const std::vector<T>& x, const std::vector<T>& frequency) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = std::sin(frequency[i % frequency.size()] * x[i]);
  return y;
}

}  // namespace braid::reference
