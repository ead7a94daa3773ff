#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence as written in short_conv.h. x (T, C), w (C, W), bias (C) or empty, state (W - 1, C)
/// or empty. Returns y (T, C) and leaves the last W - 1 inputs in `state`.
template <class T>
std::vector<T> short_conv(int64_t tokens, int64_t channels, int64_t width, bool silu,
                          const std::vector<T>& x, const std::vector<T>& w,
                          const std::vector<T>& bias, std::vector<T>& state) {
  const int64_t before = width - 1;
  state.resize(static_cast<size_t>(before * channels), T(0));
  std::vector<T> all = state;  // (W - 1 + T, C)
  all.insert(all.end(), x.begin(), x.end());
  std::vector<T> y(x.size());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < channels; ++c) {
      T sum = bias.empty() ? T(0) : bias[static_cast<size_t>(c)];
      for (int64_t k = 0; k < width; ++k) {
        sum += w[static_cast<size_t>(c * width + k)] *
               all[static_cast<size_t>((t + k) * channels + c)];
      }
      y[static_cast<size_t>(t * channels + c)] = silu ? sum / (1.0 + std::exp(-sum)) : sum;
    }
  }
  state.assign(all.end() - before * channels, all.end());
  return y;
}

}  // namespace braid::reference
