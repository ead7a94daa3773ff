#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

template <class T>
struct Favor {
  std::vector<T> features, log_decay, maximum;
};

/// One sequence as written in favor_features.h; `keys` chooses the running maximum, which goes on
/// from `initial` (H; empty: nothing). Branches look at real parts.
template <class T>
Favor<T> favor(const std::vector<T>& x, const std::vector<double>& w, const std::vector<T>& initial,
               int64_t heads, int64_t dim, double eps, bool keys) {
  const auto H = static_cast<size_t>(heads), K = static_cast<size_t>(dim);
  const size_t M = w.size() / K, tokens = x.size() / (H * K);
  const double root = std::sqrt(static_cast<double>(M));
  Favor<T> out;
  out.maximum = initial;
  out.maximum.resize(H, T(0));
  std::vector<bool> seen(H);
  for (size_t h = 0; h < H; ++h) seen[h] = std::real(out.maximum[h]) != 0;
  for (size_t i = 0; i < tokens * H; ++i) {
    const size_t h = i % H;
    std::vector<T> s(M, T(0));
    T square = T(0), top = T(0);
    for (size_t d = 0; d < K; ++d) {
      const T u = x[i * K + d] / std::pow(static_cast<double>(K), 0.25);
      square += u * u;
      for (size_t j = 0; j < M; ++j) s[j] += w[j * K + d] * u;
    }
    for (size_t j = 0; j < M; ++j) {
      s[j] -= square / 2.0;
      if (j == 0 || std::real(s[j]) > std::real(top)) top = s[j];
    }
    T c = top;
    if (keys && seen[h] && std::real(out.maximum[h]) > std::real(top)) c = out.maximum[h];
    out.log_decay.push_back(seen[h] ? out.maximum[h] - c : T(0));
    out.maximum[h] = c;
    seen[h] = true;
    for (size_t j = 0; j < M; ++j) out.features.push_back((std::exp(s[j] - c) + eps) / root);
  }
  return out;
}

}  // namespace braid::reference
