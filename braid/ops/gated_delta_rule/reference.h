#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence of the recurrence as written in gated_delta_rule.h.
template <class T>
struct GatedDelta {
  int64_t tokens, heads, key_heads, key_dim, value_dim;
  std::vector<T> q, k, v, log_decay, beta;
  std::vector<T> initial;  // empty: zero
};

template <class T>
struct GatedDeltaOutput {
  std::vector<T> y, final_state;
};

template <class T>
GatedDeltaOutput<T> gated_delta_rule(const GatedDelta<T>& in) {
  const int64_t H = in.heads, G = in.key_heads, K = in.key_dim, V = in.value_dim;
  const auto at = [](const std::vector<T>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  GatedDeltaOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * H * V), T(0));
  out.final_state = in.initial;
  out.final_state.resize(static_cast<size_t>(H * K * V), T(0));
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      const int64_t key = (t * G + h * G / H) * K;
      const T decay = std::exp(at(in.log_decay, t * H + h));
      for (int64_t j = 0; j < V; ++j) {
        const auto state = [&](int64_t i) -> T& {
          return out.final_state[static_cast<size_t>((h * K + i) * V + j)];
        };
        T predicted = T(0), y = T(0);
        for (int64_t i = 0; i < K; ++i) {
          state(i) *= decay;
          predicted += state(i) * at(in.k, key + i);
        }
        const T e = at(in.beta, t * H + h) * (at(in.v, (t * H + h) * V + j) - predicted);
        for (int64_t i = 0; i < K; ++i) {
          state(i) += at(in.k, key + i) * e;
          y += state(i) * at(in.q, key + i);
        }
        out.y[static_cast<size_t>((t * H + h) * V + j)] = y;
      }
    }
  }
  return out;
}

}  // namespace braid::reference
