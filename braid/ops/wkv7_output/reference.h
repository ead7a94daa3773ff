#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

template <class T>
struct Wkv7Reading {
  std::vector<T> y, r, k, v, gate;   // (N, H P)
  std::vector<T> r_k, weight, bias;  // (H P)
};

template <class T>
std::vector<T> wkv7_output(const Wkv7Reading<T>& in, int64_t head_dim, double eps) {
  using std::sqrt;
  const auto P = static_cast<size_t>(head_dim), width = in.r_k.size();
  const auto count = static_cast<double>(head_dim);
  std::vector<T> out;
  for (size_t head = 0; head < in.y.size(); head += P) {
    T mean{}, variance{}, bonus{};
    for (size_t i = head; i < head + P; ++i) mean += in.y[i] / count;
    for (size_t i = head; i < head + P; ++i) {
      variance += (in.y[i] - mean) * (in.y[i] - mean) / count;
      bonus += in.r[i] * in.k[i] * in.r_k[i % width];
    }
    for (size_t i = head; i < head + P; ++i) {
      const T normal = (in.y[i] - mean) / sqrt(variance + eps);
      out.push_back((in.weight[i % width] * normal + in.bias[i % width] + bonus * in.v[i]) *
                    in.gate[i]);
    }
  }
  return out;
}

}  // namespace braid::reference
