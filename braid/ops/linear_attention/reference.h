#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence of the recurrence as written in linear_attention.h.
template <class T>
struct LinearAttention {
  int64_t tokens, heads, key_dim, value_dim;
  std::vector<T> q, k, v;
  std::vector<T> log_decay;  // (tokens, heads), (heads) or empty
  std::vector<T> initial;    // empty: zero
};

template <class T>
struct LinearAttentionOutput {
  std::vector<T> y, final_state;
};

template <class T>
LinearAttentionOutput<T> linear_attention(const LinearAttention<T>& in) {
  const int64_t H = in.heads, K = in.key_dim, V = in.value_dim;
  const auto at = [](const std::vector<T>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  const bool constant = std::ssize(in.log_decay) == H && in.tokens != 1;
  LinearAttentionOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * H * V), T(0));
  out.final_state = in.initial;
  out.final_state.resize(static_cast<size_t>(H * V * K), T(0));
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      const T log = in.log_decay.empty() ? T(0) : at(in.log_decay, constant ? h : t * H + h);
      const T decay = std::exp(log);
      for (int64_t i = 0; i < V; ++i) {
        T& y = out.y[static_cast<size_t>((t * H + h) * V + i)];
        for (int64_t j = 0; j < K; ++j) {
          T& s = out.final_state[static_cast<size_t>((h * V + i) * K + j)];
          s = decay * s + at(in.v, (t * H + h) * V + i) * at(in.k, (t * H + h) * K + j);
          y += s * at(in.q, (t * H + h) * K + j);
        }
      }
    }
  }
  return out;
}

/// y (tokens, heads, value_dim) / (n (tokens, heads) + eps)
template <class T>
std::vector<T> divide_heads(const std::vector<T>& y, const std::vector<T>& n, double eps) {
  const size_t value_dim = y.size() / n.size();
  std::vector<T> out(y.size());
  for (size_t i = 0; i < y.size(); ++i) out[i] = y[i] / (n[i / value_dim] + eps);
  return out;
}

}  // namespace braid::reference
