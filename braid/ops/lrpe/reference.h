#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// x (tokens, heads, dim) at the given positions, theta (heads, dim).
template <class T>
std::vector<T> lrpe(const std::vector<T>& x, const std::vector<T>& theta,
                    const std::vector<int64_t>& positions, size_t dim) {
  std::vector<T> y(2 * x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const T angle = theta[i % theta.size()] * static_cast<double>(positions[i / theta.size()]);
    const size_t head = i / dim, at = 2 * head * dim + i % dim;
    y[at] = x[i] * std::cos(angle);
    y[at + dim] = x[i] * std::sin(angle);
  }
  return y;
}

}  // namespace braid::reference
