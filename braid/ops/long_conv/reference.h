#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence as written in long_conv.h. u (T, C), k (L, C), d (C). Returns y (T, C).
template <class T>
std::vector<T> long_conv(int64_t tokens, int64_t channels, const std::vector<T>& u,
                         const std::vector<T>& k, const std::vector<T>& d) {
  const auto taps = static_cast<int64_t>(k.size()) / channels;
  std::vector<T> y(u.size());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < channels; ++c) {
      T sum = d[static_cast<size_t>(c)] * u[static_cast<size_t>(t * channels + c)];
      for (int64_t j = 0; j <= t && j < taps; ++j) {
        sum += k[static_cast<size_t>(j * channels + c)] *
               u[static_cast<size_t>((t - j) * channels + c)];
      }
      y[static_cast<size_t>(t * channels + c)] = sum;
    }
  }
  return y;
}

}  // namespace braid::reference
