#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence of the recurrence as written in ssd.h. T may be std::complex<double>: branches look
/// at real parts only.
template <class T>
struct Ssd {
  int64_t tokens, heads, head_dim, groups, state;
  double dt_min, dt_max;
  std::vector<T> x, b, c, dt_raw, dt_bias, a_log, d;  // d empty: absent
  std::vector<T> initial;                             // empty: zero
};

template <class T>
struct SsdOutput {
  std::vector<T> y, final_state;
};

template <class T>
T softplus(T x) {
  const T positive = std::real(x) > 0 ? x : T(0);
  const T e = std::exp(std::real(x) > 0 ? -x : x);
  // ln(1 + e), by its series where 1 + e would lose e.
  if (std::abs(e) < 1e-5) return positive + e - e * e / 2.0 + e * e * e / 3.0;
  return positive + std::log(1.0 + e);
}

template <class T>
SsdOutput<T> ssd(const Ssd<T>& in) {
  const int64_t P = in.head_dim, N = in.state;
  const auto at = [](const std::vector<T>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  SsdOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * in.heads * P), T(0));
  out.final_state = in.initial;
  out.final_state.resize(static_cast<size_t>(in.heads * P * N), T(0));
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < in.heads; ++h) {
      const int64_t g = h * in.groups / in.heads;
      T dt = softplus(at(in.dt_raw, t * in.heads + h) + at(in.dt_bias, h));
      if (std::real(dt) <= in.dt_min) dt = in.dt_min;
      if (std::real(dt) >= in.dt_max) dt = in.dt_max;
      const T decay = std::exp(-dt * std::exp(at(in.a_log, h)));
      for (int64_t p = 0; p < P; ++p) {
        const T x = at(in.x, (t * in.heads + h) * P + p);
        T y = in.d.empty() ? T(0) : at(in.d, h) * x;
        for (int64_t n = 0; n < N; ++n) {
          T& s = out.final_state[static_cast<size_t>((h * P + p) * N + n)];
          s = decay * s + dt * x * at(in.b, (t * in.groups + g) * N + n);
          y += s * at(in.c, (t * in.groups + g) * N + n);
        }
        out.y[static_cast<size_t>((t * in.heads + h) * P + p)] = y;
      }
    }
  }
  return out;
}

}  // namespace braid::reference
