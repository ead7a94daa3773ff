// The backward pass of one cell. README.md derives what is computed here.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_TTT_VJP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_TTT_VJP_INL_H_
#undef BRAID_OPS_TTT_VJP_INL_H_
#else
#define BRAID_OPS_TTT_VJP_INL_H_
#endif

#include "braid/ops/ttt/ttt-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// Backwards through `read_rows`: adds to dx, d_keys, d_values and d_rate.
struct RowsVjp {
  float *dx, *d_keys, *d_values;
  int64_t dx_row;
};
inline void read_rows_vjp(const Triangle& t, int64_t n_in, const float* x, int64_t x_row,
                          const float* keys, float one, int64_t n_out, const float* values,
                          const float* dz, const TttVjpScratch& at, const RowsVjp& d) {
  scores(t, n_in, x, x_row, keys, one, at.cell.transposed, at.cell.coef);
  scores(t, n_out, dz, n_out, values, 0, at.cell.transposed, at.d_coef);
  for (int64_t i = 0; i < t.rows(); ++i) {
    at.d_rate[t.cell.phase + i] -=
        dot(t.sees(i), at.cell.coef + i * t.mini_batch, at.d_coef + i * t.mini_batch);
  }
  masked(t, at.cell.coef, at.cell.coef);
  masked(t, at.d_coef, at.d_coef);
  simd::GemmDims product{.m = t.columns(),
                         .n = n_out,
                         .k = t.rows(),
                         .a_row = 1,
                         .a_col = t.mini_batch,
                         .b_row = n_out,
                         .c_row = n_out,
                         .start_row = n_out};
  gemm(product, at.cell.coef, dz, d.d_values, d.d_values);
  product.n = n_in;
  product.b_row = x_row;
  product.c_row = product.start_row = n_in;
  gemm(product, at.d_coef, x, d.d_keys, d.d_keys);
  gemm({.m = t.rows(),
        .n = n_in,
        .k = t.columns(),
        .a_row = t.mini_batch,
        .a_col = 1,
        .b_row = n_in,
        .c_row = d.dx_row,
        .start_row = d.dx_row},
       at.d_coef, keys, d.dx, d.dx);
}

// Backwards through one cell of a head. `grad` is the gradient of the state: on entry of the state
// after the cell, on return of the one before it.
class CellVjp {
 public:
  CellVjp(const Inner& inner, const TttHeadState& grad, const HeadOperands& in,
          const HeadNorm& norm, const TttVjpScratch& at, const TttHeadGrads& d)
      : inner_(inner),
        dims_(*inner.dims),
        cell_(inner.seen.cell),
        grad_(grad),
        in_(in),
        norm_(norm),
        at_(at),
        d_(d) {}

  // dy points to the head's first row of the cell.
  void run(const float* dy, int64_t dy_stride) {
    for (int l = 0; l < dims_.layers(); ++l) {
      simd::transpose(dims_.in(l), dims_.out(l), inner_.state.w(l), dims_.out(l), at_.cell.wt[l],
                      dims_.in(l));
    }
    if (cell_.end() == dims_.mini_batch) commit_vjp();
    outputs_vjp(dy, dy_stride);
    for (int64_t i = 0; i < cell_.count; ++i) d_.d_lr[(cell_.begin + i) * dims_.heads] = 0;
    for (int64_t r = dims_.steps - 1; r >= 0; --r) {
      dims_.hidden == 0 ? linear_step_vjp(r) : mlp_step_vjp(r);
    }
    const int64_t n = dims_.head_dim;
    for (int64_t i = 0; i < cell_.count; ++i) {
      std::copy_n(grad_.keys() + (cell_.phase + i) * n, n, row_of(d_.dk, i));
    }
  }

 private:
  int64_t stride() const { return dims_.heads * dims_.head_dim; }
  float* row_of(float* x, int64_t i) const { return x + (cell_.begin + i) * stride(); }

  // W' = W - rate sum in_l^T p_l: the gradient of W' is that of W, and reaches the rows.
  void commit_vjp() {
    const int64_t K = dims_.mini_batch;
    const float rate = inner_.seen.rate[K - 1];
    for (int layer = 0; layer < dims_.layers(); ++layer) {
      const int64_t n_in = dims_.in(layer), n_out = dims_.out(layer);
      // The transpose of the gradient, where the transposed weights of a head fit.
      simd::transpose(n_in, n_out, grad_.w(layer), n_out, at_.d_wt, n_in);
      for (int64_t r = 0; r < dims_.steps; ++r) {
        const float *inputs = inner_.state.inputs(layer, r), *p = inner_.state.p(layer, r);
        simd::GemmDims product{.m = K,
                               .n = n_out,
                               .k = n_in,
                               .a_row = n_in,
                               .a_col = 1,
                               .b_row = n_out,
                               .c_row = n_out};
        gemm(product, inputs, grad_.w(layer), grad_.b(layer), at_.rows);
        at_.d_rate[K - 1] -= dot(K * n_out, at_.rows, p);
        add_scaled(K * n_out, -rate, at_.rows, grad_.p(layer, r));
        product.n = product.b_row = product.c_row = n_in;
        product.k = product.a_row = n_out;
        gemm(product, p, at_.d_wt, nullptr, at_.rows);
        add_scaled(K * n_in, -rate, at_.rows, grad_.inputs(layer, r));
      }
    }
  }

  void add_scaled(int64_t n, float factor, const float* x, float* y) const {
    const V f = hn::Set(D(), factor);
    each(n, [&](auto access, size_t i) HWY_ATTR {
      access.store(hn::MulAdd(f, access.load(x + i), access.load(y + i)), y + i);
    });
  }

  // Backwards through Inner::apply, from dz: adds to dx and to the gradient of the state.
  void apply_vjp(int layer, int64_t steps, const float* x, int64_t x_row, const float* dz,
                 float* dx, int64_t dx_row) const {
    const int64_t n_in = dims_.in(layer), n_out = dims_.out(layer), rows = cell_.count;
    simd::GemmDims product{.m = n_in,
                           .n = n_out,
                           .k = rows,
                           .a_row = 1,
                           .a_col = x_row,
                           .b_row = n_out,
                           .c_row = n_out,
                           .start_row = n_out};
    gemm(product, x, dz, grad_.w(layer), grad_.w(layer));
    constexpr float kOne = 1;
    product.m = 1, product.a_col = 0;
    gemm(product, &kOne, dz, grad_.b(layer), grad_.b(layer));
    gemm({.m = rows,
          .n = n_in,
          .k = n_out,
          .a_row = n_out,
          .a_col = 1,
          .b_row = n_in,
          .c_row = dx_row,
          .start_row = dx_row},
         dz, at_.cell.wt[layer], dx, dx);
    for (int64_t r = 0; r < steps; ++r) {
      read_rows_vjp(inner_.seen, n_in, x, x_row, inner_.state.inputs(layer, r), 1, n_out,
                    inner_.state.p(layer, r), dz, at_,
                    {.dx = dx,
                     .d_keys = grad_.inputs(layer, r),
                     .d_values = grad_.p(layer, r),
                     .dx_row = dx_row});
    }
  }

  // The same of Inner::apply_transposed, from dy.
  void apply_transposed_vjp(int64_t steps, const float* g, const float* dy, float* dg) const {
    const int64_t n_in = dims_.in(1), n_out = dims_.out(1), rows = cell_.count;
    gemm({.m = n_in,
          .n = n_out,
          .k = rows,
          .a_row = 1,
          .a_col = n_in,
          .b_row = n_out,
          .c_row = n_out,
          .start_row = n_out},
         dy, g, grad_.w(1), grad_.w(1));
    gemm({.m = rows,
          .n = n_out,
          .k = n_in,
          .a_row = n_in,
          .a_col = 1,
          .b_row = n_out,
          .c_row = n_out,
          .start_row = n_out},
         dy, inner_.state.w(1), dg, dg);
    for (int64_t r = 0; r < steps; ++r) {
      read_rows_vjp(
          inner_.seen, n_out, g, n_out, inner_.state.p(1, r), 0, n_in, inner_.state.inputs(1, r),
          dy, at_,
          {.dx = dg, .d_keys = grad_.p(1, r), .d_values = grad_.inputs(1, r), .dx_row = n_out});
    }
  }

  // y = [q +] N(f(q)): the query's activations are made again.
  void outputs_vjp(const float* dy, int64_t dy_stride) {
    const int64_t n = dims_.head_dim, width = dims_.width();
    const TttScratch& c = at_.cell;
    const float* q = in_.q(cell_.begin);
    inner_.apply(0, dims_.steps, q, dims_.q_stride, c.z1);
    const float* z = c.z1;
    if (dims_.hidden > 0) {
      gelu_rows(cell_.count * width, c.z1, c.x2, c.slope);
      inner_.apply(1, dims_.steps, c.x2, width, c.z2);
      z = c.z2;
    }
    for (int64_t i = 0; i < cell_.count; ++i) {
      const float* from = dy + i * dy_stride;
      float* dq = row_of(d_.dq, i);
      dims_.residual ? std::copy_n(from, n, dq) : std::fill_n(dq, n, 0.0f);
      norm_.output_vjp(z + i * n, from, at_.dz2 + i * n, d_.d_norm_weight, d_.d_norm_bias);
    }
    const float* dz1 = at_.dz2;
    if (dims_.hidden > 0) {
      std::fill_n(at_.dz1, cell_.count * width, 0.0f);
      apply_vjp(1, dims_.steps, c.x2, width, at_.dz2, at_.dz1, width);
      each(cell_.count * width, [&](auto access, size_t i) HWY_ATTR {
        access.store(hn::Mul(access.load(at_.dz1 + i), access.load(c.slope + i)), at_.dz1 + i);
      });
      dz1 = at_.dz1;
    }
    apply_vjp(0, dims_.steps, q, dims_.q_stride, dz1, row_of(d_.dq, 0), stride());
  }

  // Through the loss gradient at z (count, D), given the gradients dg of it: dz2, dv and dk.
  void loss_vjp(int64_t r, const float* z, const float* dg) {
    const int64_t n = dims_.head_dim;
    const bool first = r == dims_.steps - 1;
    for (int64_t i = 0; i < cell_.count; ++i) {
      const float* k = inner_.state.keys() + (cell_.phase + i) * n;
      norm_.loss_gradient_vjp(z + i * n, k, in_.v(cell_.begin + i), dg + i * n, at_.dz2 + i * n,
                              at_.d_target, d_.d_norm_weight, d_.d_norm_bias, at_.row);
      float *dv = row_of(d_.dv, i), *dk = grad_.keys() + (cell_.phase + i) * n;
      if (first) std::fill_n(dv, n, 0.0f);
      add_scaled(n, 1, at_.d_target, dv);
      if (dims_.residual) add_scaled(n, -1, at_.d_target, dk);
    }
  }

  void linear_step_vjp(int64_t r) {
    const int64_t n = dims_.head_dim;
    const float* z = at_.saved.z1 + r * dims_.mini_batch * n;
    const float* keys = inner_.state.keys() + cell_.phase * n;
    const float* dp = grad_.p(0, r) + cell_.phase * n;
    for (int64_t i = 0; i < cell_.count; ++i) {
      const int64_t t = cell_.begin + i;
      norm_.loss_gradient(z + i * n, keys + i * n, in_.v(t), at_.row);
      d_.d_lr[t * dims_.heads] += dot(n, at_.row, dp + i * n);
      scale_row(n, in_.lr(t), dp + i * n, at_.dg + i * n);
    }
    loss_vjp(r, z, at_.dg);
    apply_vjp(0, r, keys, n, at_.dz2, grad_.keys() + cell_.phase * n, n);
  }

  void mlp_step_vjp(int64_t r) {
    const int64_t n = dims_.head_dim, width = dims_.hidden, K = dims_.mini_batch;
    const float *z1 = at_.saved.z1 + r * K * width, *y = at_.saved.y + r * K * width;
    const float* z2 = at_.saved.z2 + r * K * n;
    const float* keys = inner_.state.keys() + cell_.phase * n;
    const float* dp1 = grad_.p(0, r) + cell_.phase * width;
    const float* dp2 = grad_.p(1, r) + cell_.phase * n;
    // g2 in at_.rows, its gradient in at_.dg; that of y in at_.dy; of z1 in at_.dz1.
    for (int64_t i = 0; i < cell_.count; ++i) {
      const int64_t t = cell_.begin + i;
      norm_.loss_gradient(z2 + i * n, keys + i * n, in_.v(t), at_.rows + i * n);
      scale_row(n, in_.lr(t), dp2 + i * n, at_.dg + i * n);
      float& d_lr = d_.d_lr[t * dims_.heads];
      d_lr += dot(n, at_.rows + i * n, dp2 + i * n);
      const V lr = hn::Set(D(), in_.lr(t));
      d_lr +=
          sv::sum_over_row(static_cast<size_t>(width), [&](auto access, size_t j, V sum) HWY_ATTR {
            const auto at = static_cast<size_t>(i * width) + j;
            const Gelu gelu(access.load(z1 + at));
            const V dp = access.load(dp1 + at), yv = access.load(y + at);
            const V dg = hn::Mul(lr, dp);
            access.store(gelu.slope, at_.cell.slope + at);
            access.store(hn::Mul(dg, gelu.slope), at_.dy + at);
            access.store(hn::Mul(hn::Mul(dg, yv), gelu.curve), at_.dz1 + at);
            return hn::MulAdd(dp, hn::Mul(yv, gelu.slope), sum);
          });
    }
    apply_transposed_vjp(r, at_.rows, at_.dy, at_.dg);
    loss_vjp(r, z2, at_.dg);
    float* dx2 = grad_.inputs(1, r) + cell_.phase * width;
    apply_vjp(1, r, inner_.state.inputs(1, r) + cell_.phase * width, width, at_.dz2, dx2, width);
    each(cell_.count * width, [&](auto access, size_t j) HWY_ATTR {
      const V slope = access.load(at_.cell.slope + j);
      access.store(hn::MulAdd(access.load(dx2 + j), slope, access.load(at_.dz1 + j)), at_.dz1 + j);
    });
    apply_vjp(0, r, keys, n, at_.dz1, grad_.keys() + cell_.phase * n, n);
  }

  const Inner& inner_;
  const TttDims& dims_;
  const TttCell& cell_;
  TttHeadState grad_;
  const HeadOperands& in_;
  const HeadNorm& norm_;
  const TttVjpScratch& at_;
  TttHeadGrads d_;
};

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
