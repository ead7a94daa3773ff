#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence of `tokens`. r, log_decay, k, v, a, b (T, H P); state (H, P, P),
/// keys by values, zero if empty.
template <class T>
struct Wkv7 {
  int64_t tokens, heads, head_dim;
  std::vector<T> r, log_decay, k, v, a, b, state;
};

template <class T>
struct Wkv7Output {
  std::vector<T> y, final_state;
};

template <class T>
Wkv7Output<T> wkv7(const Wkv7<T>& in) {
  using std::exp;
  const int64_t H = in.heads, P = in.head_dim;
  Wkv7Output<T> out;
  out.final_state = in.state;
  out.final_state.resize(static_cast<size_t>(H * P * P));
  const auto at = [](const std::vector<T>& x, int64_t i) { return x[static_cast<size_t>(i)]; };
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      T* S = out.final_state.data() + h * P * P;  // (P, P)
      const int64_t row = (t * H + h) * P;
      for (int64_t j = 0; j < P; ++j) {
        T read{}, y{};
        for (int64_t i = 0; i < P; ++i) read += at(in.a, row + i) * S[i * P + j];
        for (int64_t i = 0; i < P; ++i) {
          S[i * P + j] = exp(at(in.log_decay, row + i)) * S[i * P + j] + at(in.b, row + i) * read +
                         at(in.k, row + i) * at(in.v, row + j);
          y += at(in.r, row + i) * S[i * P + j];
        }
        out.y.push_back(y);
      }
    }
  }
  return out;
}

}  // namespace braid::reference
