#include "braid/nn/init.h"

#include <cassert>
#include <cmath>
#include <vector>

namespace braid {
namespace {

// Four chains, which the compiler may not make of one by itself.
double dot(const double* a, const double* b, size_t n) {
  double sum[4] = {};
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (size_t j = 0; j < 4; ++j) sum[j] += a[i + j] * b[i + j];
  }
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

Initializer init_orthogonal(int64_t rows, int64_t columns, double gain) {
  return [=](std::span<float> values, const Rng& rng) {
    assert(static_cast<int64_t>(values.size()) == rows * columns);
    const bool tall = rows > columns;
    const auto count = static_cast<size_t>(tall ? columns : rows);
    const auto length = static_cast<size_t>(tall ? rows : columns);
    std::vector<double> q(count * length);  // (count, length), the vectors
    for (size_t i = 0; i < q.size(); ++i) q[i] = rng.normal(i);
    for (size_t v = 0; v < count; ++v) {
      double* at = q.data() + v * length;
      for (size_t u = 0; u < v; ++u) {
        const double* of = q.data() + u * length;
        const double along = dot(at, of, length);
        for (size_t i = 0; i < length; ++i) at[i] -= along * of[i];
      }
      const double scale = 1 / std::sqrt(dot(at, at, length));
      for (size_t i = 0; i < length; ++i) at[i] *= scale;
    }
    for (size_t v = 0; v < count; ++v) {
      for (size_t i = 0; i < length; ++i) {
        values[tall ? i * count + v : v * length + i] =
            static_cast<float>(gain * q[v * length + i]);
      }
    }
  };
}

}  // namespace braid
