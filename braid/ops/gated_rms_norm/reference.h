#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// As written in gated_rms_norm.h; y, z (T, E), w (E).
template <class T>
std::vector<T> gated_rms_norm(const std::vector<T>& y, const std::vector<T>& z,
                              const std::vector<T>& w, int64_t groups, double eps,
                              bool norm_before_gate) {
  const size_t size = w.size() / static_cast<size_t>(groups);
  std::vector<T> out(y.size());
  for (size_t begin = 0; begin < y.size(); begin += size) {
    T sum = T(0);
    std::vector<T> u(size), gate(size);
    for (size_t i = 0; i < size; ++i) {
      gate[i] = z[begin + i] / (1.0 + std::exp(-z[begin + i]));
      u[i] = norm_before_gate ? y[begin + i] : y[begin + i] * gate[i];
      sum += u[i] * u[i];
    }
    const T r = 1.0 / std::sqrt(sum / static_cast<double>(size) + eps);
    for (size_t i = 0; i < size; ++i) {
      const T normed = u[i] * r * w[(begin + i) % w.size()];
      out[begin + i] = norm_before_gate ? normed * gate[i] : normed;
    }
  }
  return out;
}

}  // namespace braid::reference
