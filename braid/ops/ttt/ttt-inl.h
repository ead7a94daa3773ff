// One cell of a head in the dual form: what the forward and the backward pass share.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_TTT_TTT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_TTT_TTT_INL_H_
#undef BRAID_OPS_TTT_TTT_INL_H_
#else
#define BRAID_OPS_TTT_TTT_INL_H_
#endif

#include <algorithm>

#include "braid/ops/ttt/norm-inl.h"
#include "braid/ops/ttt/scratch.h"
#include "braid/simd/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

using simd::gemm;

// Rows that each see the rows [0, phase + i] of a mini-batch.
struct Triangle {
  TttCell cell;
  const float* rate;   // (K)
  int64_t mini_batch;  // the row stride of coefficients

  int64_t rows() const { return cell.count; }
  int64_t columns() const { return cell.end(); }
  float rate_of(int64_t i) const { return rate[cell.phase + i]; }
  // How many rows token i sees.
  int64_t sees(int64_t i) const { return cell.phase + i + 1; }
};

// a (rows, columns) <- one + x keys^T, all of it; `transposed` is scratch.
inline void scores(const Triangle& t, int64_t n, const float* x, int64_t x_row, const float* keys,
                   float one, float* transposed, float* a) {
  simd::transpose(t.columns(), n, keys, n, transposed, t.mini_batch);
  gemm({.m = t.rows(),
        .n = t.columns(),
        .k = n,
        .a_row = x_row,
        .a_col = 1,
        .b_row = t.mini_batch,
        .c_row = t.mini_batch},
       x, transposed, nullptr, a);
  const V shift = hn::Set(D(), one);
  for (int64_t i = 0; i < t.rows(); ++i) {
    float* at = a + i * t.mini_batch;
    each(t.columns(), [&](auto access, size_t j)
                          HWY_ATTR { access.store(hn::Add(access.load(at + j), shift), at + j); });
  }
}

// y <- -rate_i x where token i sees column l, else 0.
inline void masked(const Triangle& t, const float* x, float* y) {
  for (int64_t i = 0; i < t.rows(); ++i) {
    const V factor = hn::Set(D(), -t.rate_of(i));
    const float* from = x + i * t.mini_batch;
    float* to = y + i * t.mini_batch;
    each(t.columns(), [&](auto access, size_t l) HWY_ATTR {
      access.store(hn::Mul(factor, access.load(from + l)), to + l);
    });
    std::fill(to + t.sees(i), to + t.columns(), 0.0f);
  }
}

// y_i += sum over l that i sees of -rate_i (x_i keys_l + one) values_l.
inline void read_rows(const Triangle& t, int64_t n_in, const float* x, int64_t x_row,
                      const float* keys, float one, int64_t n_out, const float* values,
                      const TttScratch& at, float* y, int64_t y_row) {
  scores(t, n_in, x, x_row, keys, one, at.transposed, at.coef);
  masked(t, at.coef, at.coef);
  gemm({.m = t.rows(),
        .n = n_out,
        .k = t.columns(),
        .a_row = t.mini_batch,
        .a_col = 1,
        .b_row = n_out,
        .c_row = y_row,
        .start_row = y_row},
       at.coef, values, y, y);
}

// Layers of one head during one cell.
struct Inner {
  const TttDims* dims;
  TttHeadState state;
  Triangle seen;
  const TttScratch* at;

  // z (rows, out) <- x W + b at each row's own weights after `steps` steps.
  void apply(int layer, int64_t steps, const float* x, int64_t x_row, float* z) const {
    const int64_t n_in = dims->in(layer), n_out = dims->out(layer);
    gemm({.m = seen.rows(),
          .n = n_out,
          .k = n_in,
          .a_row = x_row,
          .a_col = 1,
          .b_row = n_out,
          .c_row = n_out},
         x, state.w(layer), state.b(layer), z);
    for (int64_t r = 0; r < steps; ++r) {
      read_rows(seen, n_in, x, x_row, state.inputs(layer, r), 1, n_out, state.p(layer, r), *at, z,
                n_out);
    }
  }

  // y (rows, F) <- g W2^T at each row's own weights after `steps` steps.
  void apply_transposed(int64_t steps, const float* g, float* y) const {
    const int64_t n_in = dims->in(1), n_out = dims->out(1);
    simd::transpose(n_in, n_out, state.w(1), n_out, at->wt[1], n_in);
    gemm({.m = seen.rows(),
          .n = n_in,
          .k = n_out,
          .a_row = n_out,
          .a_col = 1,
          .b_row = n_in,
          .c_row = n_in},
         g, at->wt[1], nullptr, y);
    for (int64_t r = 0; r < steps; ++r) {
      read_rows(seen, n_out, g, n_out, state.p(1, r), 0, n_in, state.inputs(1, r), *at, y, n_in);
    }
  }
};

// What one head reads of the operands.
struct HeadOperands {
  const TttDims* dims;
  const TttOperands* in;
  int64_t h;

  const float* q(int64_t t) const { return in->q + t * dims->q_stride + h * dims->head_dim; }
  const float* k(int64_t t) const { return in->k + t * dims->k_stride + h * dims->head_dim; }
  const float* v(int64_t t) const { return in->v + t * dims->v_stride + h * dims->head_dim; }
  float lr(int64_t t) const { return in->lr[t * dims->heads + h]; }
  HeadNorm norm(float* x, float* g) const {
    const int64_t n = dims->head_dim;
    return {.n = n,
            .norm = dims->norm,
            .residual = dims->residual,
            .eps = dims->eps,
            .w = dims->norm ? in->norm_weight + h * n : nullptr,
            .b = dims->norm ? in->norm_bias + h * n : nullptr,
            .x = x,
            .g = g};
  }
};

HWY_INLINE void scale_row(int64_t n, float factor, const float* x, float* y) {
  const V f = hn::Set(D(), factor);
  each(n, [&](auto access, size_t i)
              HWY_ATTR { access.store(hn::Mul(f, access.load(x + i)), y + i); });
}

// x <- gelu(z), slope <- gelu'(z)
HWY_INLINE void gelu_rows(int64_t count, const float* z, float* x, float* slope) {
  each(count, [&](auto access, size_t i) HWY_ATTR {
    const Gelu gelu(access.load(z + i));
    access.store(gelu.value, x + i);
    if (slope != nullptr) access.store(gelu.slope, slope + i);
  });
}

// The cell's rows of the state: keys, and the factors of all steps' gradients. What step r leaves
// on the way begins at row r `saved_rows` of `saved`.
inline void write_rows(const Inner& inner, const HeadOperands& in, const HeadNorm& norm,
                       const TttSaved& saved, int64_t saved_rows) {
  const TttDims& dims = *inner.dims;
  const TttCell& cell = inner.seen.cell;
  const int64_t n = dims.head_dim, width = dims.width();
  float* keys = inner.state.keys() + cell.phase * n;
  for (int64_t i = 0; i < cell.count; ++i) std::copy_n(in.k(cell.begin + i), n, keys + i * n);
  for (int64_t r = 0; r < dims.steps; ++r) {
    float* z1 = saved.z1 + r * saved_rows * width;
    float* p1 = inner.state.p(0, r) + cell.phase * width;
    inner.apply(0, r, keys, n, z1);
    if (dims.hidden == 0) {
      for (int64_t i = 0; i < cell.count; ++i) {
        norm.loss_gradient(z1 + i * n, keys + i * n, in.v(cell.begin + i), p1 + i * n);
        scale_row(n, in.lr(cell.begin + i), p1 + i * n, p1 + i * n);
      }
      continue;
    }
    float *y = saved.y + r * saved_rows * width, *z2 = saved.z2 + r * saved_rows * n;
    float* x2 = inner.state.inputs(1, r) + cell.phase * width;
    float* p2 = inner.state.p(1, r) + cell.phase * n;
    gelu_rows(cell.count * width, z1, x2, inner.at->slope);
    inner.apply(1, r, x2, width, z2);
    for (int64_t i = 0; i < cell.count; ++i) {
      norm.loss_gradient(z2 + i * n, keys + i * n, in.v(cell.begin + i), p2 + i * n);
    }
    inner.apply_transposed(r, p2, y);
    for (int64_t i = 0; i < cell.count; ++i) {
      const V lr = hn::Set(D(), in.lr(cell.begin + i));
      scale_row(n, in.lr(cell.begin + i), p2 + i * n, p2 + i * n);
      each(width, [&](auto access, size_t j) HWY_ATTR {
        const auto at = static_cast<size_t>(i * width) + j;
        const V g1 = hn::Mul(access.load(y + at), access.load(inner.at->slope + at));
        access.store(hn::Mul(lr, g1), p1 + at);
      });
    }
  }
}

// The weights after the whole mini-batch.
inline void commit(const Inner& inner) {
  const TttDims& dims = *inner.dims;
  const int64_t K = dims.mini_batch;
  const float factor = -inner.seen.rate[K - 1];
  for (int layer = 0; layer < dims.layers(); ++layer) {
    const int64_t n_in = dims.in(layer), n_out = dims.out(layer);
    for (int64_t r = 0; r < dims.steps; ++r) {
      scale_row(K * n_in, factor, inner.state.inputs(layer, r), inner.at->scaled);
      simd::GemmDims product{.m = n_in,
                             .n = n_out,
                             .k = K,
                             .a_row = 1,
                             .a_col = n_in,
                             .b_row = n_out,
                             .c_row = n_out,
                             .start_row = n_out};
      float *w = inner.state.w(layer), *b = inner.state.b(layer);
      gemm(product, inner.at->scaled, inner.state.p(layer, r), w, w);
      product.m = 1, product.a_col = 0;
      gemm(product, &factor, inner.state.p(layer, r), b, b);
    }
  }
}

// Weights of a head before the sequence's first token, and the rows of a mini-batch in progress.
inline void load_state(const TttDims& dims, const TttOperands& in, int64_t s, int64_t h,
                       const float* h0, float* base) {
  const TttHeadState to(dims, base);
  if (!dims.fresh(s, h0)) {
    if (h0 + h * dims.state() != base) std::copy_n(h0 + h * dims.state(), dims.state(), base);
    return;
  }
  for (int layer = 0; layer < dims.layers(); ++layer) {
    const int64_t n = dims.in(layer)*dims.out(layer), m = dims.out(layer);
    std::copy_n(in.fresh.w[layer] + h * n, n, to.w(layer));
    std::copy_n(in.fresh.b[layer] + h * m, m, to.b(layer));
  }
  std::fill(to.keys(), base + dims.state(), 0.0f);
}

// Zero in the rows from `first` on: the state is a function of what was read.
inline void clear_rows(const TttDims& dims, const TttHeadState& state, int64_t first) {
  const int64_t left = dims.mini_batch - first;
  std::fill_n(state.keys() + first * dims.head_dim, left * dims.head_dim, 0.0f);
  for (int64_t r = 0; r < dims.steps; ++r) {
    for (int layer = 0; layer < dims.layers(); ++layer) {
      const int64_t n = dims.out(layer);
      std::fill_n(state.p(layer, r) + first * n, left * n, 0.0f);
    }
    if (dims.hidden > 0) {
      std::fill_n(state.inputs(1, r) + first * dims.hidden, left * dims.hidden, 0.0f);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
