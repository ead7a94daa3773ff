#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence as written in linformer.h: x (T, C), e (R, rank).
template <class T>
std::vector<T> linformer_summaries(int64_t tokens, int64_t channels, int64_t rank, int64_t block,
                                   const std::vector<T>& x, const std::vector<T>& e) {
  const int64_t rows = block == 0 ? tokens : block, runs = block == 0 ? 1 : tokens / block;
  std::vector<T> s(static_cast<size_t>(runs * rank * channels));
  for (int64_t b = 0; b < runs; ++b) {
    for (int64_t a = 0; a < rank; ++a) {
      for (int64_t c = 0; c < channels; ++c) {
        T sum{};
        for (int64_t r = 0; r < rows; ++r) {
          sum += e[static_cast<size_t>(r * rank + a)] *
                 x[static_cast<size_t>((b * rows + r) * channels + c)];
        }
        s[static_cast<size_t>((b * rank + a) * channels + c)] = sum;
      }
    }
  }
  return s;
}

struct Linformer {
  int64_t heads, kv_heads, head_dim, value_dim, rank, block;
};

/// One sequence. k and v are not read where block is 0.
template <class T>
std::vector<T> linformer_attention(int64_t tokens, const Linformer& o, const std::vector<T>& q,
                                   const std::vector<T>& k, const std::vector<T>& v,
                                   const std::vector<T>& sk, const std::vector<T>& sv) {
  std::vector<T> y(static_cast<size_t>(tokens * o.heads * o.value_dim));
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t h = 0; h < o.heads; ++h) {
      const int64_t g = h * o.kv_heads / o.heads;
      std::vector<T> scores;
      std::vector<const T*> rows;
      const auto see = [&](const std::vector<T>& keys, const std::vector<T>& vals, int64_t j) {
        T score{};
        for (int64_t d = 0; d < o.head_dim; ++d) {
          score += q[static_cast<size_t>((i * o.heads + h) * o.head_dim + d)] *
                   keys[static_cast<size_t>((j * o.kv_heads + g) * o.head_dim + d)];
        }
        scores.push_back(score / std::sqrt(static_cast<double>(o.head_dim)));
        rows.push_back(&vals[static_cast<size_t>((j * o.kv_heads + g) * o.value_dim)]);
      };
      const int64_t runs = o.block == 0 ? 1 : std::max<int64_t>(0, i / o.block - 1);
      for (int64_t j = 0; j < runs * o.rank; ++j) see(sk, sv, j);
      for (int64_t j = runs * o.block; o.block > 0 && j <= i; ++j) see(k, v, j);
      double most = -INFINITY;
      for (const T& s : scores) most = std::max(most, std::real(s));
      T sum{};
      for (T& s : scores) sum += s = std::exp(s - most);
      for (int64_t d = 0; d < o.value_dim; ++d) {
        T value{};
        for (size_t j = 0; j < scores.size(); ++j) value += scores[j] * rows[j][d];
        y[static_cast<size_t>((i * o.heads + h) * o.value_dim + d)] = value / sum;
      }
    }
  }
  return y;
}

}  // namespace braid::reference
