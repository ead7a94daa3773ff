#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// Each run of `size` values of x is one head of one row.
template <class T>
std::vector<T> l2_norm(const std::vector<T>& x, size_t size, double scale, double eps) {
  std::vector<T> y(x.size());
  for (size_t begin = 0; begin < x.size(); begin += size) {
    T sum = T(eps);
    for (size_t i = begin; i < begin + size; ++i) sum += x[i] * x[i];
    for (size_t i = begin; i < begin + size; ++i) y[i] = scale * x[i] / std::sqrt(sum);
  }
  return y;
}

}  // namespace braid::reference
