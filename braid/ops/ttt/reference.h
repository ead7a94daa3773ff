#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

#include "braid/ops/ttt/ttt.h"

namespace braid::reference {

/// One sequence of ttt.h, in its shapes; `initial` may be empty.
template <class T>
struct Ttt {
  TttOptions options;
  int64_t start = 0, tokens = 0;
  std::vector<T> q, k, v, lr, rate, norm_weight, norm_bias, w1, b1, w2, b2, initial;
};

template <class T>
struct TttOutput {
  std::vector<T> y, final_state;
};

template <class T>
struct TttRow {
  std::vector<T> v;
  T& operator[](int64_t i) { return v[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const { return v[static_cast<size_t>(i)]; }
  explicit TttRow(int64_t n = 0) : v(static_cast<size_t>(n), T(0)) {}
};

/// W (in, out) and b, or a gradient of them.
template <class T>
struct TttLayer {
  int64_t in = 0, out = 0;
  TttRow<T> w, b;
  TttLayer() = default;
  TttLayer(int64_t rows, int64_t columns) : in(rows), out(columns), w(rows * columns), b(columns) {}

  TttRow<T> apply(const TttRow<T>& x) const {
    TttRow<T> z = b;
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t j = 0; j < out; ++j) z[j] += x[i] * w[i * out + j];
    }
    return z;
  }
  TttRow<T> transposed(const TttRow<T>& g) const {
    TttRow<T> y(in);
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t j = 0; j < out; ++j) y[i] += g[j] * w[i * out + j];
    }
    return y;
  }
  void add_outer(const TttRow<T>& x, const TttRow<T>& p) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t j = 0; j < out; ++j) w[i * out + j] += x[i] * p[j];
    }
    for (int64_t j = 0; j < out; ++j) b[j] += p[j];
  }
};

template <class T>
T ttt_gelu(T x) {
  return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
template <class T>
T ttt_gelu_slope(T x) {
  const T t = std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) +
         0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 3 * 0.044715 * x * x);
}

/// Primal: each token has its own weights, less accumulated gradients as matrices. Dual: the
/// weights stay those of the mini-batch's start, and gradients are read through their factors.
enum class TttForm : uint8_t { kPrimal, kDual };

/// One head, token by token.
template <class T>
class TttHead {
 public:
  TttHead(const Ttt<T>& in, int64_t head, TttForm form)
      : in_(in), o_(in.options), h_(head), form_(form) {
    const int64_t D = o_.head_dim, F = o_.hidden > 0 ? o_.hidden : D;
    layers_.emplace_back(D, F);
    if (o_.hidden > 0) layers_.emplace_back(F, D);
    keys_.assign(static_cast<size_t>(o_.mini_batch), TttRow<T>(D));
    steps_.resize(static_cast<size_t>(o_.steps));
    for (auto& step : steps_) {
      for (size_t l = 0; l < layers_.size(); ++l) {
        step.p[l].assign(keys_.size(), TttRow<T>(layers_[l].out));
      }
      step.x2.assign(keys_.size(), TttRow<T>(F));
    }
    load();
  }

  /// Token t of the sequence; y has D elements.
  void token(int64_t t, T* y) {
    const int64_t D = o_.head_dim;
    phase_ = (in_.start + t) % o_.mini_batch;
    if (phase_ == 0) clear();
    const TttRow<T> q = row(in_.q, t), k = row(in_.k, t), v = row(in_.v, t);
    keys_[static_cast<size_t>(phase_)] = k;
    for (int64_t r = 0; r < o_.steps; ++r) {
      set_steps(r);
      gradient(k, v, in_.lr[static_cast<size_t>(t * o_.heads + h_)],
               steps_[static_cast<size_t>(r)]);
    }
    set_steps(o_.steps);
    TttRow<T> z = apply(0, q);
    if (o_.hidden > 0) {
      for (T& value : z.v) value = ttt_gelu(value);
      z = apply(1, z);
    }
    const TttRow<T> normed = o_.norm ? norm(z).y : z;
    for (int64_t i = 0; i < D; ++i) y[i] = (o_.residual ? q[i] : T(0)) + normed[i];
    if (phase_ == o_.mini_batch - 1) layers_ = after(o_.steps), clear();
  }

  /// In the layout of ttt_state_size.
  std::vector<T> state() const {
    std::vector<T> out;
    const auto put = [&](const TttRow<T>& x) { out.insert(out.end(), x.v.begin(), x.v.end()); };
    for (const auto& layer : layers_) put(layer.w), put(layer.b);
    for (const auto& key : keys_) put(key);
    for (const auto& step : steps_) {
      for (const auto& p : step.p[0]) put(p);
      if (o_.hidden == 0) continue;
      for (const auto& x2 : step.x2) put(x2);
      for (const auto& p : step.p[1]) put(p);
    }
    return out;
  }

 private:
  struct Step {
    std::vector<TttRow<T>> p[2], x2;
  };
  struct Normed {
    TttRow<T> y, x;  // after and before the affine map
    T std;
  };

  TttRow<T> row(const std::vector<T>& x, int64_t t) const {
    TttRow<T> out(o_.head_dim);
    for (int64_t i = 0; i < o_.head_dim; ++i) {
      out[i] = x[static_cast<size_t>((t * o_.heads + h_) * o_.head_dim + i)];
    }
    return out;
  }
  T norm_weight(int64_t i) const {
    return in_.norm_weight[static_cast<size_t>(h_ * o_.head_dim + i)];
  }
  T norm_bias(int64_t i) const { return in_.norm_bias[static_cast<size_t>(h_ * o_.head_dim + i)]; }

  Normed norm(const TttRow<T>& z) const {
    const int64_t D = o_.head_dim;
    const auto n = static_cast<double>(D);
    T mean(0), variance(0);
    for (const T& value : z.v) mean += value / n;
    for (const T& value : z.v) variance += (value - mean) * (value - mean) / n;
    Normed out{TttRow<T>(D), TttRow<T>(D), std::sqrt(variance + static_cast<double>(o_.eps))};
    for (int64_t i = 0; i < D; ++i) {
      out.x[i] = (z[i] - mean) / out.std;
      out.y[i] = norm_weight(i) * out.x[i] + norm_bias(i);
    }
    return out;
  }

  // d l / d z, at z = f(k).
  TttRow<T> loss_gradient(const TttRow<T>& z, const TttRow<T>& k, const TttRow<T>& v) const {
    const int64_t D = o_.head_dim;
    TttRow<T> g(D);
    for (int64_t i = 0; i < D; ++i) g[i] = z[i] - (o_.residual ? v[i] - k[i] : v[i]);
    if (!o_.norm) return g;
    const Normed normed = norm(z);
    T sum(0), along(0);
    for (int64_t i = 0; i < D; ++i) {
      g[i] = (g[i] - z[i] + normed.y[i]) * norm_weight(i);
      sum += g[i];
      along += g[i] * normed.x[i];
    }
    const auto n = static_cast<double>(D);
    for (int64_t i = 0; i < D; ++i) {
      g[i] = (n * g[i] - sum - normed.x[i] * along) / (n * normed.std);
    }
    return g;
  }

  void gradient(const TttRow<T>& k, const TttRow<T>& v, T lr, Step& step) const {
    const TttRow<T> z1 = apply(0, k);
    TttRow<T> g1 = z1;
    if (o_.hidden == 0) {
      g1 = loss_gradient(z1, k, v);
    } else {
      TttRow<T> x2 = z1;
      for (T& value : x2.v) value = ttt_gelu(value);
      TttRow<T> g2 = loss_gradient(apply(1, x2), k, v);
      g1 = apply_transposed(g2);
      for (int64_t i = 0; i < o_.hidden; ++i) g1[i] *= ttt_gelu_slope(z1[i]);
      for (T& value : g2.v) value *= lr;
      step.x2[static_cast<size_t>(phase_)] = x2;
      step.p[1][static_cast<size_t>(phase_)] = g2;
    }
    for (T& value : g1.v) value *= lr;
    step.p[0][static_cast<size_t>(phase_)] = g1;
  }

  T rate() const { return in_.rate[static_cast<size_t>(phase_)]; }

  // From here on f is the token's model after `steps` steps.
  void set_steps(int64_t steps) {
    taken_ = steps;
    if (form_ == TttForm::kPrimal) now_ = after(steps);
  }

  // body(inputs, p) for each token and step that this token's model has seen.
  template <class Body>
  void each_gradient(int64_t steps, size_t layer, Body&& body) const {
    for (int64_t r = 0; r < steps; ++r) {
      const Step& step = steps_[static_cast<size_t>(r)];
      for (size_t j = 0; j <= static_cast<size_t>(phase_); ++j) {
        body(layer == 0 ? keys_[j] : step.x2[j], step.p[layer][j]);
      }
    }
  }
  static T product(const TttRow<T>& x, const TttRow<T>& y) {
    T sum(0);
    for (size_t i = 0; i < x.v.size(); ++i) sum += x.v[i] * y.v[i];
    return sum;
  }

  TttRow<T> apply(size_t layer, const TttRow<T>& x) const {
    if (form_ == TttForm::kPrimal) return now_[layer].apply(x);
    TttRow<T> z = layers_[layer].apply(x);
    each_gradient(taken_, layer, [&](const TttRow<T>& inputs, const TttRow<T>& p) {
      const T factor = rate() * (product(x, inputs) + 1.0);
      for (size_t i = 0; i < z.v.size(); ++i) z.v[i] -= factor * p.v[i];
    });
    return z;
  }
  TttRow<T> apply_transposed(const TttRow<T>& g) const {
    if (form_ == TttForm::kPrimal) return now_[1].transposed(g);
    TttRow<T> y = layers_[1].transposed(g);
    each_gradient(taken_, 1, [&](const TttRow<T>& inputs, const TttRow<T>& p) {
      const T factor = rate() * product(g, p);
      for (size_t i = 0; i < y.v.size(); ++i) y.v[i] -= factor * inputs.v[i];
    });
    return y;
  }

  // The weights at the mini-batch's start, less rate times all gradients of `steps` steps so far.
  std::vector<TttLayer<T>> after(int64_t steps) const {
    std::vector<TttLayer<T>> now = layers_;
    for (size_t l = 0; l < now.size(); ++l) {
      TttLayer<T> sum(now[l].in, now[l].out);
      each_gradient(steps, l,
                    [&](const TttRow<T>& inputs, const TttRow<T>& p) { sum.add_outer(inputs, p); });
      for (size_t i = 0; i < now[l].w.v.size(); ++i) now[l].w.v[i] -= rate() * sum.w.v[i];
      for (size_t i = 0; i < now[l].b.v.size(); ++i) now[l].b.v[i] -= rate() * sum.b.v[i];
    }
    return now;
  }

  void clear() {
    const auto zero = [](std::vector<TttRow<T>>& rows) {
      for (auto& x : rows) x.v.assign(x.v.size(), T(0));
    };
    zero(keys_);
    for (auto& step : steps_) zero(step.p[0]), zero(step.p[1]), zero(step.x2);
  }

  void load() {
    const bool fresh = (in_.start == 0 && in_.tokens > 0) || in_.initial.empty();
    auto at = in_.initial.begin() + (fresh ? 0 : h_ * ttt_state_size(o_));
    const auto take = [&at](TttRow<T>& x) {
      for (T& value : x.v) value = *at++;
    };
    const auto learned = [this](const std::vector<T>& from, TttRow<T>& x) {
      const auto n = static_cast<int64_t>(x.v.size());
      std::copy_n(from.begin() + h_ * n, n, x.v.begin());
    };
    if (fresh) {
      learned(in_.w1, layers_[0].w), learned(in_.b1, layers_[0].b);
      if (o_.hidden > 0) learned(in_.w2, layers_[1].w), learned(in_.b2, layers_[1].b);
      return;
    }
    for (auto& layer : layers_) take(layer.w), take(layer.b);
    for (auto& key : keys_) take(key);
    for (auto& step : steps_) {
      for (auto& p : step.p[0]) take(p);
      if (o_.hidden == 0) continue;
      for (auto& x2 : step.x2) take(x2);
      for (auto& p : step.p[1]) take(p);
    }
  }

  const Ttt<T>& in_;
  const TttOptions& o_;
  int64_t h_;
  TttForm form_;
  int64_t phase_ = 0, taken_ = 0;
  std::vector<TttLayer<T>> layers_, now_;  // at the start of the mini-batch, and after some steps
  std::vector<TttRow<T>> keys_;
  std::vector<Step> steps_;
};

template <class T>
TttOutput<T> ttt(const Ttt<T>& in, TttForm form = TttForm::kPrimal) {
  const int64_t H = in.options.heads, D = in.options.head_dim;
  TttOutput<T> out;
  out.y.assign(static_cast<size_t>(in.tokens * H * D), T(0));
  for (int64_t h = 0; h < H; ++h) {
    TttHead<T> head(in, h, form);
    for (int64_t t = 0; t < in.tokens; ++t) head.token(t, out.y.data() + (t * H + h) * D);
    const auto state = head.state();
    out.final_state.insert(out.final_state.end(), state.begin(), state.end());
  }
  return out;
}

}  // namespace braid::reference
