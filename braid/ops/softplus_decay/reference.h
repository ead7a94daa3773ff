#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

/// x (T, H); a_log, bias (H).
template <class T>
std::vector<T> softplus_decay(const std::vector<T>& x, const std::vector<T>& a_log,
                              const std::vector<T>& bias) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t h = i % bias.size();
    const T at = x[i] + bias[h];
    const T soft =
        std::real(at) > 0 ? at + std::log(1.0 + std::exp(-at)) : std::log(1.0 + std::exp(at));
    y[i] = -std::exp(a_log[h]) * soft;
  }
  return y;
}

}  // namespace braid::reference
