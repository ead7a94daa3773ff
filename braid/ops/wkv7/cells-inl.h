// What the chunked form does to the rows of a cell beside its products of matrices.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#ifndef BRAID_OPS_WKV7_CELLS_ONCE_
#define BRAID_OPS_WKV7_CELLS_ONCE_
namespace braid::cpu {

// The factors of one cell's decays, rows P wide: of its tokens, relative to its middle, and of its
// beginning and its end.
struct CellDecays {
  float *read, *before, *write;  // (Q, P): e^(l-m), e^(p-m), e^(m-l); `before` is a row behind
  float *begin, *end;            // (P): e^m, e^(L-m)
};

}  // namespace braid::cpu
#endif

#if defined(BRAID_OPS_WKV7_CELLS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_WKV7_CELLS_INL_H_
#undef BRAID_OPS_WKV7_CELLS_INL_H_
#else
#define BRAID_OPS_WKV7_CELLS_INL_H_
#endif

#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// log_decay (n, stride), its first P columns.
void cell_decays(int64_t n, int64_t P, int64_t stride, const float* log_decay,
                 const CellDecays& out) {
  const D d;
  sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
    V middle = hn::Zero(d), total = hn::Zero(d);
    for (int64_t i = 0; i < n; ++i) {
      if (i == n / 2) middle = total;
      total = hn::Add(total, at.load(log_decay + i * stride + j));
    }
    V sum = hn::Zero(d);
    at.store(sv::exp(hn::Neg(middle)), out.before + j);
    for (int64_t i = 0; i < n; ++i) {
      const size_t to = static_cast<size_t>(i * P) + j;
      sum = hn::Add(sum, at.load(log_decay + i * stride + j));
      at.store(sv::exp(hn::Sub(sum, middle)), out.read + to);
      at.store(sv::exp(hn::Sub(middle, sum)), out.write + to);
    }
    at.store(sv::exp(middle), out.begin + j);
    at.store(sv::exp(hn::Sub(total, middle)), out.end + j);
  });
}

// to (n, P) <- x y; x and `to` have rows x_row and to_row apart.
void multiply_rows(int64_t n, int64_t P, const float* x, int64_t x_row, const float* y, float* to,
                   int64_t to_row) {
  for (int64_t i = 0; i < n; ++i) {
    sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
      at.store(hn::Mul(at.load(x + i * x_row + j), at.load(y + i * P + j)), to + i * to_row + j);
    });
  }
}

// to (P, P) <- diag(scale) x.
void scale_rows(int64_t P, const float* scale, const float* x, float* to) {
  for (int64_t i = 0; i < P; ++i) {
    const V factor = hn::Set(D(), scale[i]);
    sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
      at.store(hn::Mul(factor, at.load(x + i * P + j)), to + i * P + j);
    });
  }
}

// U (n, P) <- (I - M)^-1 U for strictly lower M (n, n), or with its transpose.
void solve(int64_t n, int64_t P, const float* m, int64_t m_row, bool transposed, float* u) {
  const D d;
  for (int64_t step = 1; step < n; ++step) {
    const int64_t i = transposed ? n - 1 - step : step;
    const int64_t begin = transposed ? i + 1 : 0, end = transposed ? n : i;
    sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
      V sum = at.load(u + i * P + j);
      for (int64_t p = begin; p < end; ++p) {
        const float factor = transposed ? m[p * m_row + i] : m[i * m_row + p];
        sum = hn::MulAdd(hn::Set(d, factor), at.load(u + p * P + j), sum);
      }
      at.store(sum, u + i * P + j);
    });
  }
}

// The gradient of the log decays from those of what they multiply, last row first, in the cell's
// own coordinates (x dx = r dr and so on): `carry` (P) is sum_v G S at the end and becomes that at
// the beginning. x, dx hold r over a, z, dz hold k over b; each (2 n, P).
void log_decay_grads(int64_t n, int64_t P, const float* x, const float* dx, const float* z,
                     const float* dz, float* carry, float* out, int64_t out_row) {
  sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
    V sum = at.load(carry + j);
    for (int64_t i = n - 1; i >= 0; --i) {
      const size_t upper = static_cast<size_t>(i * P) + j;
      const size_t lower = static_cast<size_t>((n + i) * P) + j;
      sum = hn::MulAdd(at.load(x + upper), at.load(dx + upper), sum);
      sum = hn::NegMulAdd(at.load(z + upper), at.load(dz + upper), sum);
      sum = hn::NegMulAdd(at.load(z + lower), at.load(dz + lower), sum);
      at.store(sum, out + static_cast<size_t>(i * out_row) + j);
      sum = hn::MulAdd(at.load(x + lower), at.load(dx + lower), sum);
    }
    at.store(sum, carry + j);
  });
}

// y (P) <- sum_j a[i, j] b[i, j] for a, b (P, P).
void row_dots(int64_t P, const float* a, const float* b, float* y) {
  for (int64_t i = 0; i < P; ++i) {
    y[i] = sv::sum_over_row(static_cast<size_t>(P), [&](auto at, size_t j, V sum) {
      return hn::MulAdd(at.load(a + i * P + j), at.load(b + i * P + j), sum);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
