#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace braid::reference {

/// One sequence of the recurrence as written in selective_scan.h. T may be std::complex<double>:
/// branches look at real parts only.
template <class T>
struct SelectiveScan {
  int64_t tokens, channels, state;
  std::vector<T> x, dt_raw;                   // dt_raw empty: the system does not vary
  std::vector<T> b, c, dt_bias, a_log, d, z;  // d, z empty: absent
  std::vector<T> initial;                     // (N, E); empty: zero
};

template <class T>
struct SelectiveScanOutput {
  std::vector<T> y, final_state;
};

template <class T>
T selective_softplus(T x) {
  const T positive = std::real(x) > 0 ? x : T(0);
  const T e = std::exp(std::real(x) > 0 ? -x : x);
  // ln(1 + e), by its series where 1 + e would lose e.
  if (std::abs(e) < 1e-5) return positive + e - e * e / 2.0 + e * e * e / 3.0;
  return positive + std::log(1.0 + e);
}

template <class T>
SelectiveScanOutput<T> selective_scan(const SelectiveScan<T>& in) {
  const int64_t E = in.channels, N = in.state;
  const bool invariant = in.dt_raw.empty();
  const auto at = [](const std::vector<T>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  SelectiveScanOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * E), T(0));
  out.final_state = in.initial;
  out.final_state.resize(static_cast<size_t>(N * E), T(0));
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t e = 0; e < E; ++e) {
      const T raw = at(in.dt_bias, e) + (invariant ? T(0) : at(in.dt_raw, t * E + e));
      const T dt = selective_softplus(raw), x = at(in.x, t * E + e);
      T y = in.d.empty() ? T(0) : at(in.d, e) * x;
      for (int64_t n = 0; n < N; ++n) {
        const int64_t bc = (invariant ? e : t) * N + n;
        T& h = out.final_state[static_cast<size_t>(n * E + e)];
        h = std::exp(-dt * std::exp(at(in.a_log, e * N + n))) * h + dt * at(in.b, bc) * x;
        y += at(in.c, bc) * h;
      }
      if (!in.z.empty()) {
        const T z = at(in.z, t * E + e);
        y *= z / (1.0 + std::exp(-z));
      }
      out.y[static_cast<size_t>(t * E + e)] = y;
    }
  }
  return out;
}

}  // namespace braid::reference
