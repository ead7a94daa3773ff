// What the passes of large-chunk test-time training share: a block of tokens, the update of a
// chunk. Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_LACT_LACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_LACT_LACT_INL_H_
#undef BRAID_OPS_LACT_LACT_INL_H_
#else
#define BRAID_OPS_LACT_LACT_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "braid/ops/lact/scratch.h"
#include "braid/ops/ttt/norm-inl.h"
#include "braid/simd/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

using simd::gemm;

// y (m, n) <- [y +] x (m, k) w (k, n), w and y dense.
HWY_INLINE void times(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_row,
                      const float* w, bool add, float* y, int64_t y_row) {
  gemm({.m = m,
        .n = n,
        .k = k,
        .a_row = x_row,
        .a_col = 1,
        .b_row = n,
        .c_row = y_row,
        .start_row = y_row},
       x, w, add ? y : nullptr, y);
}

// y (k, n) += x^T z for x (m, k) and z (m, n): one chain over the m rows.
HWY_INLINE void add_outer(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_row,
                          const float* z, int64_t z_row, float* y) {
  gemm({.m = k,
        .n = n,
        .k = m,
        .a_row = 1,
        .a_col = x_row,
        .b_row = z_row,
        .c_row = n,
        .start_row = n},
       x, z, y, y);
}

// Rows x_i (n) times factor_i, `stride` apart.
HWY_INLINE void scale_by(int64_t rows, int64_t n, const float* factor, int64_t stride,
                         const float* x, int64_t x_row, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const V f = hn::Set(D(), factor[i * stride]);
    each(n, [&](auto access, size_t j) HWY_ATTR {
      access.store(hn::Mul(f, access.load(x + i * x_row + static_cast<int64_t>(j))),
                   y + i * n + static_cast<int64_t>(j));
    });
  }
}

HWY_INLINE void add_scaled_to(int64_t n, float factor, const float* x, float* y) {
  const V f = hn::Set(D(), factor);
  each(n, [&](auto access, size_t i) HWY_ATTR {
    access.store(hn::MulAdd(f, access.load(x + i), access.load(y + i)), y + i);
  });
}

// Tokens [begin, begin + rows), at most kLactRows, of one chunk.
struct LactBlock {
  int64_t begin, rows;
};

// The blocks of a sequence in order: body(block, whether the chunk is complete after it).
template <class Body>
void each_block(const LactDims& dims, int64_t s, int64_t first, int64_t end, Body&& body) {
  int64_t phase = (dims.starts[s] + first - dims.offsets[s]) % dims.chunk;
  for (int64_t t = first; t < end;) {
    const int64_t rows = std::min({kLactRows, end - t, dims.chunk - phase});
    phase = (phase + rows) % dims.chunk;
    body(LactBlock{t, rows}, phase == 0);
    t += rows;
  }
}

// One head's view of the operands.
struct LactHead {
  const LactDims* dims;
  const LactOperands* in;
  int64_t h;

  const float* q(int64_t t) const { return in->q + t * dims->q_stride + h * dims->head_dim; }
  const float* k(int64_t t) const { return in->k + t * dims->k_stride + h * dims->head_dim; }
  const float* v(int64_t t) const { return in->v + t * dims->v_stride + h * dims->head_dim; }
  const float* lr(int64_t t, int i) const { return in->lr + (t * 3 + i) * dims->heads + h; }
  int64_t lr_stride() const { return 3 * dims->heads; }
  const float* learned(int i) const { return in->w[i] + h * dims->matrix(); }
};

// g <- x W0, u <- x W2, s <- silu(g), h <- s u.
inline void hidden_rows(const LactDims& dims, const LactHeadState& state, int64_t rows,
                        const float* x, int64_t x_row, const LactScratch& at) {
  const int64_t n = dims.head_dim, F = dims.hidden;
  times(rows, F, n, x, x_row, state.w(0), false, at.g, F);
  times(rows, F, n, x, x_row, state.w(2), false, at.u, F);
  each(rows * F, [&](auto access, size_t i) HWY_ATTR {
    const V s = sv::silu(access.load(at.g + i));
    access.store(s, at.s + i);
    access.store(hn::Mul(s, access.load(at.u + i)), at.h + i);
  });
}

// The block's gradients onto the sums of its chunk. `at.w1t` holds W1 transposed.
inline void add_gradients(const LactHead& in, const LactHeadState& state, const LactBlock& block,
                          const LactScratch& at) {
  const LactDims& dims = *in.dims;
  const int64_t n = dims.head_dim, F = dims.hidden, rows = block.rows, t = block.begin;
  hidden_rows(dims, state, rows, in.k(t), dims.k_stride, at);
  times(rows, F, n, in.v(t), dims.v_stride, at.w1t, false, at.dh, F);
  scale_by(rows, F, in.lr(t, 1), in.lr_stride(), at.h, F, at.scaled);
  add_outer(rows, n, F, at.scaled, F, in.v(t), dims.v_stride, state.gradient(1));
  each(rows * F, [&](auto access, size_t i) HWY_ATTR {
    const V g = access.load(at.g + i), dh = access.load(at.dh + i);
    const V slope = sv::silu_slope(g, sv::sigmoid(g));
    access.store(hn::Mul(hn::Mul(dh, access.load(at.u + i)), slope), at.e + i);
    access.store(hn::Mul(dh, access.load(at.s + i)), at.dh + i);
  });
  scale_by(rows, n, in.lr(t, 0), in.lr_stride(), in.k(t), dims.k_stride, at.scaled);
  add_outer(rows, F, n, at.scaled, n, at.e, F, state.gradient(0));
  scale_by(rows, n, in.lr(t, 2), in.lr_stride(), in.k(t), dims.k_stride, at.scaled);
  add_outer(rows, F, n, at.scaled, n, at.dh, F, state.gradient(2));
  if (!dims.momentum) return;
  for (int64_t i = 0; i < rows; ++i) {
    *state.gate_sum() += in.in->momentum[(t + i) * dims.heads + in.h];
  }
}

constexpr float kMuon[kMuonSteps][3] = {{4.0848f, -6.8946f, 2.9270f},
                                        {3.9505f, -6.3029f, 2.6377f},
                                        {3.7418f, -5.5913f, 2.3037f},
                                        {2.8769f, -3.1427f, 1.2046f},
                                        {2.8366f, -3.0525f, 1.2012f}};
constexpr float kMuonEps = 1e-7f, kNormEps = 1e-5f;

// a <- x x^T, a2 <- a a, b <- beta a + gamma a2, for x (r, c).
inline void muon_mix(int64_t r, int64_t c, const float* coefficients, const float* x,
                     const MuonScratch& at) {
  simd::transpose(r, c, x, c, at.transposed, r);
  times(r, r, c, x, c, at.transposed, false, at.a, r);
  times(r, r, r, at.a, r, at.a, false, at.a2, r);
  const V beta = hn::Set(D(), coefficients[1]), gamma = hn::Set(D(), coefficients[2]);
  each(r * r, [&](auto access, size_t i) HWY_ATTR {
    access.store(hn::MulAdd(gamma, access.load(at.a2 + i), hn::Mul(beta, access.load(at.a + i))),
                 at.b + i);
  });
}

// update (rows, columns) <- orthogonal(update); at.x keeps all steps, at.x[0] before the first.
// Returns the norm of the update.
inline float orthogonalize(int64_t rows, int64_t columns, float* update, const MuonScratch& at) {
  const int64_t r = std::min(rows, columns), c = std::max(rows, columns), n = r * c;
  if (rows > columns) {
    simd::transpose(rows, columns, update, columns, at.x[0], rows);
  } else {
    std::copy_n(update, n, at.x[0]);
  }
  const float norm = std::sqrt(dot(n, at.x[0], at.x[0]));
  const V factor = hn::Set(D(), 1.0f / (norm + kMuonEps));
  each(n, [&](auto access, size_t i)
              HWY_ATTR { access.store(hn::Mul(factor, access.load(at.x[0] + i)), at.x[0] + i); });
  for (int step = 0; step < kMuonSteps; ++step) {
    const float* x = at.x[step];
    float* next = at.x[step + 1];
    muon_mix(r, c, kMuon[step], x, at);
    const V alpha = hn::Set(D(), kMuon[step][0]);
    each(n, [&](auto access, size_t i)
                HWY_ATTR { access.store(hn::Mul(alpha, access.load(x + i)), next + i); });
    times(r, c, r, at.b, r, x, true, next, c);
  }
  const float* last = at.x[kMuonSteps];
  if (rows > columns) {
    simd::transpose(r, c, last, c, update, r);
  } else {
    std::copy_n(last, n, update);
  }
  return norm;
}

// norms_j <- the norm of column j of x (rows, n).
inline void column_norms(int64_t rows, int64_t n, const float* x, float* norms) {
  each(n, [&](auto access, size_t j) HWY_ATTR {
    V sum = hn::Zero(D());
    for (int64_t i = 0; i < rows; ++i) {
      const V v = access.load(x + i * n + static_cast<int64_t>(j));
      sum = hn::MulAdd(v, v, sum);
    }
    access.store(hn::Sqrt(sum), norms + j);
  });
}

// update <- the update of matrix i from the sums of a whole chunk; with momentum the state's is
// what it was made of. Returns the norm that `orthogonalize` divided by, else 0.
inline float make_update(const LactDims& dims, const LactHeadState& state, int i, float* update,
                         const MuonScratch& muon) {
  const int64_t n = dims.matrix();
  std::copy_n(state.gradient(i), n, update);
  if (dims.momentum) {
    const float mean = *state.gate_sum() / static_cast<float>(dims.chunk);
    add_scaled_to(n, mean, state.momentum(i), update);
    std::copy_n(update, n, state.momentum(i));
  }
  return dims.muon ? orthogonalize(dims.rows(i), dims.columns(i), update, muon) : 0;
}

// The state after a whole chunk.
inline void update_weights(const LactHead& in, const LactHeadState& state, const LactScratch& at) {
  const LactDims& dims = *in.dims;
  for (int m = 0; m < 3; ++m) {
    const int64_t rows = dims.rows(m), columns = dims.columns(m);
    make_update(dims, state, m, at.update, at.muon);
    float *w = state.w(m), *was = at.norms, *is = at.norms + columns;
    add_scaled_to(rows * columns, 1, at.update, w);
    column_norms(rows, columns, in.learned(m), was);
    column_norms(rows, columns, w, is);
    each(columns, [&](auto access, size_t j) HWY_ATTR {
      const V factor =
          hn::Div(access.load(was + j), hn::Add(access.load(is + j), hn::Set(D(), kNormEps)));
      for (int64_t i = 0; i < rows; ++i) {
        float* to = w + i * columns + static_cast<int64_t>(j);
        access.store(hn::Mul(factor, access.load(to)), to);
      }
    });
    std::fill_n(state.gradient(m), rows * columns, 0.0f);
  }
  if (dims.momentum) *state.gate_sum() = 0;
}

inline void transpose_w1(const LactDims& dims, const LactHeadState& state, float* w1t) {
  simd::transpose(dims.hidden, dims.head_dim, state.w(1), dims.head_dim, w1t, dims.hidden);
}

// The state of a head before the sequence's first token.
inline void load_lact_state(const LactHead& in, int64_t s, const float* h0,
                            const LactHeadState& to) {
  const LactDims& dims = *in.dims;
  if (!dims.fresh(s, h0)) {
    const float* from = h0 + in.h * dims.state();
    if (from != to.base()) std::copy_n(from, dims.state(), to.base());
    return;
  }
  for (int i = 0; i < 3; ++i) std::copy_n(in.learned(i), dims.matrix(), to.w(i));
  std::fill(to.gradient(0), to.base() + dims.state(), 0.0f);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
