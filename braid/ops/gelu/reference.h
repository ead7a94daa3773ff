#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <vector>

namespace braid::reference {

inline double normal_cdf(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }
/// To first order in the imaginary part, which is all that complex step asks for.
inline std::complex<double> normal_cdf(std::complex<double> x) {
  const double density = std::exp(-x.real() * x.real() / 2) / std::sqrt(2 * M_PI);
  return {normal_cdf(x.real()), density * x.imag()};
}

template <class T>
std::vector<T> gelu(const std::vector<T>& x, bool use_tanh) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const T u = std::sqrt(2 / M_PI) * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
    y[i] = use_tanh ? x[i] * (1.0 + std::tanh(u)) / 2.0 : x[i] * normal_cdf(x[i]);
  }
  return y;
}

}  // namespace braid::reference
