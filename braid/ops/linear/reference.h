#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// y (M, N) = x (M, K) w (N, K)^T + bias (N), bias may be empty.
template <class T>
std::vector<T> linear(int64_t m, int64_t n, int64_t k, const std::vector<T>& x,
                      const std::vector<T>& w, const std::vector<T>& bias) {
  std::vector<T> y(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T sum = bias.empty() ? T{} : bias[static_cast<size_t>(j)];
      for (int64_t p = 0; p < k; ++p) {
        sum += x[static_cast<size_t>(i * k + p)] * w[static_cast<size_t>(j * k + p)];
      }
      y[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return y;
}

}  // namespace braid::reference
