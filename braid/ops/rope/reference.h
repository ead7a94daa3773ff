#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One head of one token: x (head_dim), the first 2 * inv_freq.size() of it turn.
template <class T>
std::vector<T> rope(std::vector<T> x, int64_t position, const std::vector<double>& inv_freq,
                    double factor, bool interleaved) {
  const size_t pairs = inv_freq.size();
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * inv_freq[i];
    const double c = factor * std::cos(angle), s = factor * std::sin(angle);
    T& a = x[interleaved ? 2 * i : i];
    T& b = x[interleaved ? 2 * i + 1 : i + pairs];
    const T turned = a * c - b * s;
    b = b * c + a * s;
    a = turned;
  }
  return x;
}

}  // namespace braid::reference
