#pragma once

#include <cstddef>
#include <vector>

namespace braid::reference {

/// One sequence and one output. x (T, D), mu (D), before (D) or empty.
template <class T>
std::vector<T> token_shift(const std::vector<T>& x, const std::vector<T>& mu,
                           const std::vector<T>& before) {
  const size_t width = mu.size();
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t j = i % width;
    const T previous = i >= width ? x[i - width] : before.empty() ? T{} : before[j];
    y[i] = x[i] + mu[j] * (previous - x[i]);
  }
  return y;
}

}  // namespace braid::reference
