// Rows of the inner LayerNorm, the gradient of the inner loss and the gradient of that, the tanh
// form of gelu with two derivatives. Compiled once per instruction set: include after
// hwy/foreach_target.h.

#if defined(BRAID_OPS_TTT_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_TTT_NORM_INL_H_
#undef BRAID_OPS_TTT_NORM_INL_H_
#else
#define BRAID_OPS_TTT_NORM_INL_H_
#endif

#include <cmath>

#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// body(access, i) over the vectors of a row.
template <class Body>
HWY_INLINE void each(int64_t n, Body&& body) {
  sv::for_each_vector(static_cast<size_t>(n), body);
}
HWY_INLINE float sum(int64_t n, const float* x) {
  return sv::sum_over_row(static_cast<size_t>(n), [x](auto access, size_t i, V s) HWY_ATTR {
    return hn::Add(access.load(x + i), s);
  });
}
HWY_INLINE float dot(int64_t n, const float* x, const float* y) {
  return sv::sum_over_row(static_cast<size_t>(n), [x, y](auto access, size_t i, V s) HWY_ATTR {
    return hn::MulAdd(access.load(x + i), access.load(y + i), s);
  });
}

// One row of the LayerNorm: x = (z - mean) rstd.
struct RowNorm {
  float rstd;
  float* x;

  HWY_INLINE RowNorm(int64_t n, float eps, const float* z, float* normed) : x(normed) {
    const V mean = hn::Set(D(), sum(n, z) / static_cast<float>(n));
    each(n, [&](auto access, size_t i)
                HWY_ATTR { access.store(hn::Sub(access.load(z + i), mean), x + i); });
    rstd = 1.0f / std::sqrt(dot(n, x, x) / static_cast<float>(n) + eps);
    const V scale = hn::Set(D(), rstd);
    each(n, [&](auto access, size_t i)
                HWY_ATTR { access.store(hn::Mul(access.load(x + i), scale), x + i); });
  }
};

// What the rows of one head share.
struct HeadNorm {
  int64_t n;
  bool norm, residual;
  float eps;
  const float *w, *b;  // (n)
  float *x, *g;        // (n) each, scratch

  // y <- [q +] N(z)
  HWY_INLINE void output(const float* z, const float* q, float* y) const {
    if (!norm) {
      each(n, [&](auto access, size_t i) HWY_ATTR {
        const V value = access.load(z + i);
        access.store(residual ? hn::Add(access.load(q + i), value) : value, y + i);
      });
      return;
    }
    const RowNorm row(n, eps, z, x);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V value = hn::MulAdd(access.load(row.x + i), access.load(w + i), access.load(b + i));
      access.store(residual ? hn::Add(access.load(q + i), value) : value, y + i);
    });
  }

  // dz from dy of `output`, and what reaches w and b.
  HWY_INLINE void output_vjp(const float* z, const float* dy, float* dz, float* dw,
                             float* db) const {
    if (!norm) {
      each(n, [&](auto access, size_t i) HWY_ATTR { access.store(access.load(dy + i), dz + i); });
      return;
    }
    const RowNorm row(n, eps, z, x);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V d = access.load(dy + i);
      access.store(hn::MulAdd(d, access.load(x + i), access.load(dw + i)), dw + i);
      access.store(hn::Add(d, access.load(db + i)), db + i);
      access.store(hn::Mul(d, access.load(w + i)), g + i);
    });
    through_norm(row, g, 0, dz);
  }

  // dz <- rstd (dx - mean(dx) - x mean(dx x)) + shift x, for the gradient dx of the normed row.
  HWY_INLINE void through_norm(const RowNorm& row, const float* dx, float shift, float* dz) const {
    const auto count = static_cast<float>(n);
    const V mean = hn::Set(D(), sum(n, dx) / count),
            along = hn::Set(D(), dot(n, dx, row.x) / count);
    const V rstd = hn::Set(D(), row.rstd), extra = hn::Set(D(), shift);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V xi = access.load(row.x + i);
      const V centred = hn::NegMulAdd(xi, along, hn::Sub(access.load(dx + i), mean));
      access.store(hn::MulAdd(rstd, centred, hn::Mul(extra, xi)), dz + i);
    });
  }

  // out <- d l / d z, l = |N(z) - t|^2 / 2 with the target t = v [- k].
  HWY_INLINE void loss_gradient(const float* z, const float* k, const float* v, float* out) const {
    const auto target = [&](auto access, size_t i) HWY_ATTR {
      return residual ? hn::Sub(access.load(v + i), access.load(k + i)) : access.load(v + i);
    };
    if (!norm) {
      each(n, [&](auto access, size_t i) HWY_ATTR {
        access.store(hn::Sub(access.load(z + i), target(access, i)), out + i);
      });
      return;
    }
    const RowNorm row(n, eps, z, x);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V wi = access.load(w + i);
      const V y = hn::MulAdd(access.load(x + i), wi, access.load(b + i));
      access.store(hn::Mul(hn::Sub(y, target(access, i)), wi), g + i);
    });
    through_norm(row, g, 0, out);
  }

  // The gradient of <loss_gradient(z), d>: dz, d_target, and what reaches w and b. `row` (n) is
  // scratch. With g = (N(z) - t) w and a' the projection that `through_norm` applies, it is
  // a'(g) / std, which is linear in g; x and std follow by the product rule.
  HWY_INLINE void loss_gradient_vjp(const float* z, const float* k, const float* v, const float* d,
                                    float* dz, float* d_target, float* dw, float* db,
                                    float* scratch) const {
    if (!norm) {
      each(n, [&](auto access, size_t i) HWY_ATTR {
        const V di = access.load(d + i);
        access.store(di, dz + i);
        access.store(hn::Neg(di), d_target + i);
      });
      return;
    }
    const RowNorm row(n, eps, z, x);
    // u = N(z) - t in d_target for now, g = u w.
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V wi = access.load(w + i);
      const V t = residual ? hn::Sub(access.load(v + i), access.load(k + i)) : access.load(v + i);
      const V u = hn::Sub(hn::MulAdd(access.load(x + i), wi, access.load(b + i)), t);
      access.store(u, d_target + i);
      access.store(hn::Mul(u, wi), g + i);
    });
    const auto count = static_cast<float>(n);
    const float dx_sum = dot(n, d, x), gx_sum = dot(n, g, x);
    const float g_mean = sum(n, g) / count, d_mean = sum(n, d) / count;
    // <d, L> with L the loss gradient: n L std = n g - sum g - x <g, x>.
    const float along =
        (dot(n, d, g) - count * g_mean * d_mean - gx_sum * dx_sum / count) * row.rstd;
    const V rstd = hn::Set(D(), row.rstd), d_mean_v = hn::Set(D(), d_mean);
    const V dx_v = hn::Set(D(), dx_sum / count), gx_v = hn::Set(D(), gx_sum / count);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      const V di = access.load(d + i), xi = access.load(x + i), wi = access.load(w + i);
      const V gi = access.load(g + i), u = access.load(d_target + i);
      const V dg = hn::Mul(rstd, hn::NegMulAdd(xi, dx_v, hn::Sub(di, d_mean_v)));
      const V du = hn::Mul(dg, wi);
      access.store(hn::Neg(du), d_target + i);
      access.store(hn::MulAdd(dg, hn::MulAdd(wi, xi, u), access.load(dw + i)), dw + i);
      access.store(hn::Add(du, access.load(db + i)), db + i);
      const V direct = hn::MulAdd(gx_v, di, hn::Mul(dx_v, gi));
      access.store(hn::NegMulAdd(rstd, direct, hn::Mul(du, wi)), scratch + i);
    });
    // d std = -<d, L> / std and d std / dz = x / n.
    through_norm(row, scratch, -along * row.rstd / count, dz);
  }
};

// gelu(x) = x (1 + tanh u) / 2, u = c (x + a x^3), and its first two derivatives.
struct Gelu {
  V value, slope, curve;

  HWY_INLINE explicit Gelu(V x) {
    const D d;
    const V half = hn::Set(d, 0.5f), one = hn::Set(d, 1.0f);
    const V c = hn::Set(d, 0.7978845608f), ca = hn::Set(d, 0.7978845608f * 0.044715f);
    const V square = hn::Mul(x, x);
    const V t = sv::tanh(hn::Mul(x, hn::MulAdd(square, ca, c)));
    const V du = hn::MulAdd(square, hn::Mul(hn::Set(d, 3.0f), ca), c);
    const V s = hn::NegMulAdd(t, t, one), cdf = hn::MulAdd(half, t, half);
    value = hn::Mul(x, cdf);
    slope = hn::MulAdd(hn::Mul(hn::Mul(half, x), s), du, cdf);
    const V ddu = hn::Mul(hn::Set(d, 3.0f), hn::Mul(ca, x));  // half of u''
    curve = hn::Mul(s, hn::MulAdd(x, hn::NegMulAdd(hn::Mul(t, du), du, ddu), du));
  }
};

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
