#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "braid/ops/lact/lact.h"

namespace braid::reference {

/// One sequence of lact.h, in its shapes; `initial` may be empty.
template <class T>
struct Lact {
  LactOptions options;
  int64_t start = 0, tokens = 0;
  std::vector<T> q, k, v, lr, momentum, w0, w1, w2, initial;
};

template <class T>
struct LactOutput {
  std::vector<T> y, final_state;
};

template <class T>
struct LactMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<T> x;
  LactMatrix() = default;
  LactMatrix(int64_t r, int64_t c) : rows(r), columns(c), x(static_cast<size_t>(r * c), T(0)) {}
  T& at(int64_t i, int64_t j) { return x[static_cast<size_t>(i * columns + j)]; }
  const T& at(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * columns + j)]; }
};

template <class T>
LactMatrix<T> transposed(const LactMatrix<T>& a) {
  LactMatrix<T> out(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) out.at(j, i) = a.at(i, j);
  }
  return out;
}

template <class T>
LactMatrix<T> product(const LactMatrix<T>& a, const LactMatrix<T>& b) {
  LactMatrix<T> out(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.columns; ++k) {
      for (int64_t j = 0; j < b.columns; ++j) out.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return out;
}

template <class T>
LactMatrix<T> orthogonal(const LactMatrix<T>& m) {
  constexpr double kSteps[5][3] = {{4.0848, -6.8946, 2.9270},
                                   {3.9505, -6.3029, 2.6377},
                                   {3.7418, -5.5913, 2.3037},
                                   {2.8769, -3.1427, 1.2046},
                                   {2.8366, -3.0525, 1.2012}};
  LactMatrix<T> x = m.rows > m.columns ? transposed(m) : m;
  T squares(0);
  for (const T& v : x.x) squares += v * v;
  const T norm = std::sqrt(squares) + 1e-7;
  for (T& v : x.x) v /= norm;
  for (const auto& [a, b, c] : kSteps) {
    LactMatrix<T> gram = product(x, transposed(x)), mix = product(gram, gram);
    for (size_t i = 0; i < gram.x.size(); ++i) mix.x[i] = b * gram.x[i] + c * mix.x[i];
    const LactMatrix<T> change = product(mix, x);
    for (size_t i = 0; i < x.x.size(); ++i) x.x[i] = a * x.x[i] + change.x[i];
  }
  return m.rows > m.columns ? transposed(x) : x;
}

/// One head, token by token.
template <class T>
class LactHead {
 public:
  LactHead(const Lact<T>& in, int64_t head) : in_(in), o_(in.options), h_(head) {
    const bool fresh = (in.start == 0 && in.tokens > 0) || in.initial.empty();
    const std::vector<T>* learned[] = {&in.w0, &in.w1, &in.w2};
    const auto size = static_cast<size_t>(o_.head_dim * o_.hidden);
    for (size_t i = 0; i < 3; ++i) {
      LactMatrix<T> w(i == 1 ? o_.hidden : o_.head_dim, i == 1 ? o_.head_dim : o_.hidden);
      sum_[i] = momentum_[i] = w;
      std::copy_n(learned[i]->begin() + h_ * static_cast<int64_t>(size), size, w.x.begin());
      first_[i] = w_[i] = w;
    }
    if (fresh) return;
    auto at = in.initial.begin() + h_ * lact_state_size(o_);
    const auto take = [&at](LactMatrix<T>& m) {
      for (T& v : m.x) v = *at++;
    };
    for (auto& m : w_) take(m);
    for (auto& m : sum_) take(m);
    if (!o_.momentum) return;
    for (auto& m : momentum_) take(m);
    gates_ = *at;
  }

  void token(int64_t t, T* y) {
    const int64_t D = o_.head_dim, F = o_.hidden, H = o_.heads;
    const auto row = [&](const std::vector<T>& x) {
      LactMatrix<T> out(1, D);
      std::copy_n(x.begin() + (t * H + h_) * D, D, out.x.begin());
      return out;
    };
    const LactMatrix<T> q = row(in_.q), k = row(in_.k), v = row(in_.v);
    LactMatrix<T> gate = product(q, w_[0]), up = product(q, w_[2]);
    for (size_t f = 0; f < gate.x.size(); ++f) gate.x[f] = silu(gate.x[f]) * up.x[f];
    const LactMatrix<T> out = product(gate, w_[1]);
    std::copy_n(out.x.begin(), D, y);

    gate = product(k, w_[0]);
    up = product(k, w_[2]);
    const LactMatrix<T> d_hidden = product(v, transposed(w_[1]));
    const auto lr = [&](int64_t i) { return in_.lr[static_cast<size_t>((t * 3 + i) * H + h_)]; };
    for (int64_t f = 0; f < F; ++f) {
      const T g = gate.at(0, f), u = up.at(0, f), d = d_hidden.at(0, f);
      for (int64_t j = 0; j < D; ++j) {
        sum_[0].at(j, f) += lr(0) * k.at(0, j) * d * u * silu_slope(g);
        sum_[1].at(f, j) += lr(1) * silu(g) * u * v.at(0, j);
        sum_[2].at(j, f) += lr(2) * k.at(0, j) * d * silu(g);
      }
    }
    if (o_.momentum) gates_ += in_.momentum[static_cast<size_t>(t * H + h_)];
    if ((in_.start + t + 1) % o_.chunk == 0) update();
  }

  std::vector<T> state() const {
    std::vector<T> out;
    const auto put = [&out](const LactMatrix<T>& m) {
      out.insert(out.end(), m.x.begin(), m.x.end());
    };
    for (const auto& m : w_) put(m);
    for (const auto& m : sum_) put(m);
    if (!o_.momentum) return out;
    for (const auto& m : momentum_) put(m);
    out.push_back(gates_);
    return out;
  }

 private:
  static T sigmoid(T x) { return 1.0 / (1.0 + std::exp(-x)); }
  static T silu(T x) { return x * sigmoid(x); }
  static T silu_slope(T x) { return sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))); }

  static T column_norm(const LactMatrix<T>& m, int64_t j) {
    T squares(0);
    for (int64_t i = 0; i < m.rows; ++i) squares += m.at(i, j) * m.at(i, j);
    return std::sqrt(squares);
  }

  void update() {
    for (size_t n = 0; n < 3; ++n) {
      LactMatrix<T> change = sum_[n];
      if (o_.momentum) {
        const T mean = gates_ / static_cast<double>(o_.chunk);
        for (size_t i = 0; i < change.x.size(); ++i) change.x[i] += mean * momentum_[n].x[i];
        momentum_[n] = change;
      }
      if (o_.muon) change = orthogonal(change);
      LactMatrix<T>& w = w_[n];
      for (size_t i = 0; i < w.x.size(); ++i) w.x[i] += change.x[i];
      for (int64_t j = 0; j < w.columns; ++j) {
        const T factor = column_norm(first_[n], j) / (column_norm(w, j) + 1e-5);
        for (int64_t i = 0; i < w.rows; ++i) w.at(i, j) *= factor;
      }
      sum_[n] = LactMatrix<T>(w.rows, w.columns);
    }
    gates_ = T(0);
  }

  const Lact<T>& in_;
  const LactOptions& o_;
  int64_t h_;
  LactMatrix<T> first_[3], w_[3], sum_[3], momentum_[3];
  T gates_ = T(0);
};

template <class T>
LactOutput<T> lact(const Lact<T>& in) {
  const int64_t H = in.options.heads, D = in.options.head_dim;
  LactOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * H * D), T(0));
  for (int64_t h = 0; h < H; ++h) {
    LactHead<T> head(in, h);
    for (int64_t t = 0; t < in.tokens; ++t) head.token(t, out.y.data() + (t * H + h) * D);
    const auto state = head.state();
    out.final_state.insert(out.final_state.end(), state.begin(), state.end());
  }
  return out;
}

}  // namespace braid::reference
