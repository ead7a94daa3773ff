#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

template <class T>
struct Wkv7Raw {
  std::vector<T> decay, k, rate, k_k, k_a, v, v_first, v_mix;  // (N, H P); k_k, k_a (H P)
};

template <class T>
struct Wkv7Prepared {
  std::vector<T> log_decay, k, a, b, v;
};

template <class T>
Wkv7Prepared<T> wkv7_inputs(const Wkv7Raw<T>& in, int64_t head_dim) {
  using std::exp;
  using std::sqrt;
  const auto P = static_cast<size_t>(head_dim), width = in.k_k.size();
  const auto sigmoid = [](const T& x) { return T(1) / (T(1) + exp(-x)); };
  Wkv7Prepared<T> out;
  for (size_t head = 0; head < in.k.size(); head += P) {
    T squares{};
    for (size_t i = head; i < head + P; ++i) {
      const T u = in.k[i] * in.k_k[i % width];
      squares += u * u;
    }
    T norm = sqrt(squares);
    if (std::real(norm) < 1e-12) norm = T(1e-12);
    for (size_t i = head; i < head + P; ++i) {
      const T rate = sigmoid(in.rate[i]), kappa = in.k[i] * in.k_k[i % width] / norm;
      out.log_decay.push_back(-std::exp(-0.5) * sigmoid(in.decay[i]));
      out.k.push_back(in.k[i] * (T(1) + (rate - T(1)) * in.k_a[i % width]));
      out.a.push_back(-kappa);
      out.b.push_back(kappa * rate);
      if (!in.v.empty()) {
        out.v.push_back(in.v[i] + (in.v_first[i] - in.v[i]) * sigmoid(in.v_mix[i]));
      }
    }
  }
  return out;
}

}  // namespace braid::reference
