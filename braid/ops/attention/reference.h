#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "braid/ops/attention/attention.h"

namespace braid::reference {

inline double real_part(double x) { return x; }
inline double real_part(const std::complex<double>& x) { return x.real(); }

/// One whole sequence: q (T, H * hd), k (T, Hkv * hd), v (T, Hkv * dv), y (T, H * dv).
template <class T>
std::vector<T> attention(const std::vector<T>& q, const std::vector<T>& k, const std::vector<T>& v,
                         const AttentionOptions& o, int64_t hd, int64_t dv) {
  const auto tokens = static_cast<int64_t>(q.size()) / (o.heads * hd);
  const auto at = [](const std::vector<T>& x, int64_t i) { return x[static_cast<size_t>(i)]; };
  const double scale = o.scale != 0 ? o.scale : 1.0 / std::sqrt(static_cast<double>(hd));
  std::vector<T> y(static_cast<size_t>(tokens * o.heads * dv));
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t h = 0; h < o.heads; ++h) {
      const int64_t g = h * o.kv_heads / o.heads;
      const int64_t first = o.window > 0 && i >= o.window ? i - o.window + 1 : 0;
      std::vector<T> score;
      double max = -INFINITY;
      for (int64_t j = first; j <= i; ++j) {
        T s{};
        for (int64_t d = 0; d < hd; ++d) {
          s += at(q, (i * o.heads + h) * hd + d) * at(k, (j * o.kv_heads + g) * hd + d);
        }
        score.push_back(s * scale);
        max = std::max(max, real_part(score.back()));
      }
      T sum{};
      for (T& s : score) {
        s = std::exp(s - max);
        sum += s;
      }
      for (int64_t j = first; j <= i; ++j) {
        const T p = score[static_cast<size_t>(j - first)] / sum;
        for (int64_t d = 0; d < dv; ++d) {
          y[static_cast<size_t>((i * o.heads + h) * dv + d)] +=
              p * at(v, (j * o.kv_heads + g) * dv + d);
        }
      }
    }
  }
  return y;
}

}  // namespace braid::reference
