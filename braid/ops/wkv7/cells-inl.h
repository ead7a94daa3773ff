// What the chunked form does to the rows of a cell beside its products of matrices.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#ifndef BRAID_OPS_WKV7_CELLS_ONCE_
#define BRAID_OPS_WKV7_CELLS_ONCE_
namespace braid::cpu {

// One head's rows of an operand in a cell: `stride` apart for all of them.
struct CellRows {
  int64_t n, P, stride;
  const float *r, *log_decay, *k, *a, *b;
};

// The factors of a cell's decays: of its tokens, relative to its middle, of its beginning and end,
// and of the whole.
struct CellDecays {
  float *read, *before, *write;  // (Q, P): e^(l-m), e^(p-m), e^(m-l); `before` is a row behind
  float *begin, *end, *total;    // (P): e^m, e^(L-m), e^L
};

// r over a and k over b, each (2n, P): relative to the cell's middle, and x to its beginning, z to
// its end.
struct CellPairs {
  float *x, *z, *x_begin, *z_end;
};

// What makes up the gradients of x and z: through the states, in the coordinates of x_begin and
// z_end, and through the cell itself. Each (2n, P); and the gradient of v (n, P).
struct CellPairGrads {
  const float *dx_begin, *dz_end, *dx, *dz, *dv;
};

// Of the operands, in rows as far apart as theirs. `stream`: written past the caches; the thread's
// FlushStream is to follow.
struct CellGrads {
  float *dr, *d_log_decay, *dk, *dv, *da, *db;
  bool stream;
};

}  // namespace braid::cpu
#endif

#if defined(BRAID_OPS_WKV7_CELLS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_WKV7_CELLS_INL_H_
#undef BRAID_OPS_WKV7_CELLS_INL_H_
#else
#define BRAID_OPS_WKV7_CELLS_INL_H_
#endif

#include <type_traits>

#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// By value, here and below: what is stored cannot be one of these pointers.
void cell_pairs(const CellRows in, const CellDecays out, const CellPairs to) {
  const D d;
  const auto P = static_cast<size_t>(in.P), stride = static_cast<size_t>(in.stride);
  const auto n = static_cast<size_t>(in.n);
  sv::for_each_vector(P, [&](auto at, size_t j) {
    V middle = hn::Zero(d), total = hn::Zero(d);
    for (size_t i = 0; i < n; ++i) {
      if (i == n / 2) middle = total;
      total = hn::Add(total, at.load(in.log_decay + i * stride + j));
    }
    const V begin = sv::exp(middle), end = sv::exp(hn::Sub(total, middle));
    at.store(begin, out.begin + j);
    at.store(end, out.end + j);
    at.store(sv::exp(total), out.total + j);
    const auto store_pair = [&](float* pair, float* moved, size_t row, V value, V factor) {
      at.store(value, pair + row * P + j);
      at.store(hn::Mul(value, factor), moved + row * P + j);
    };
    V sum = hn::Zero(d), before = sv::exp(hn::Neg(middle));
    at.store(before, out.before + j);
    for (size_t i = 0; i < n; ++i) {
      const size_t from = i * stride + j;
      sum = hn::Add(sum, at.load(in.log_decay + from));
      const V read = sv::exp(hn::Sub(sum, middle)), write = sv::exp(hn::Sub(middle, sum));
      at.store(read, out.read + i * P + j);
      at.store(write, out.write + i * P + j);
      store_pair(to.x, to.x_begin, i, hn::Mul(at.load(in.r + from), read), begin);
      store_pair(to.x, to.x_begin, n + i, hn::Mul(at.load(in.a + from), before), begin);
      store_pair(to.z, to.z_end, i, hn::Mul(at.load(in.k + from), write), end);
      store_pair(to.z, to.z_end, n + i, hn::Mul(at.load(in.b + from), write), end);
      before = read;
    }
  });
}

// The gradients of the operands from those of x, z and v. That of the log decays goes from the last
// row to the first, in the cell's own coordinates (x dx = r dr and so on): `carry` (P) is sum_v G S
// at the end.
void cell_grads(const CellRows in, const CellDecays decays, const CellPairs pairs,
                const CellPairGrads grads, const float* carry, const CellGrads out) {
  const auto P = static_cast<size_t>(in.P), stride = static_cast<size_t>(in.stride);
  const auto n = static_cast<size_t>(in.n);
  sv::for_each_vector(P, [&](auto at, size_t j) {
    const auto put = [&](V v, float* to) {
      // Lines are written whole there, else half of one would wait for the other.
      if constexpr (HWY_TARGET == HWY_AVX3 && std::is_same_v<decltype(at), sv::Whole>) {
        if (out.stream) return hn::Stream(v, D(), to);
      }
      at.store(v, to);
    };
    const V begin = at.load(decays.begin + j), end = at.load(decays.end + j);
    V sum = at.load(carry + j);
    for (size_t i = n; i-- > 0;) {
      const size_t upper = i * P + j, lower = (n + i) * P + j, to = i * stride + j;
      const auto d_read = [&](size_t row) {
        return hn::MulAdd(at.load(grads.dx_begin + row), begin, at.load(grads.dx + row));
      };
      const auto d_write = [&](size_t row) {
        return hn::MulAdd(at.load(grads.dz_end + row), end, at.load(grads.dz + row));
      };
      const V dr = d_read(upper), da = d_read(lower), dk = d_write(upper), db = d_write(lower);
      const V write = at.load(decays.write + upper);
      put(hn::Mul(dr, at.load(decays.read + upper)), out.dr + to);
      put(at.load(grads.dv + upper), out.dv + to);
      put(hn::Mul(da, at.load(decays.before + upper)), out.da + to);
      put(hn::Mul(dk, write), out.dk + to);
      put(hn::Mul(db, write), out.db + to);
      sum = hn::MulAdd(at.load(pairs.x + upper), dr, sum);
      sum = hn::NegMulAdd(at.load(pairs.z + upper), dk, sum);
      sum = hn::NegMulAdd(at.load(pairs.z + lower), db, sum);
      put(sum, out.d_log_decay + to);
      sum = hn::MulAdd(at.load(pairs.x + lower), da, sum);
    }
  });
}

// x (P, P) <- diag(scale) x.
void scale_rows(int64_t P, const float* scale, float* x) {
  for (int64_t i = 0; i < P; ++i) {
    const V factor = hn::Set(D(), scale[i]);
    sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
      at.store(hn::Mul(factor, at.load(x + i * P + j)), x + i * P + j);
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
