// The backward pass: a task takes one head through all sequences, each from its last chunk to its
// first, with the state before every chunk kept for the sequence in work. README.md derives what is
// computed here.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/lact/kernels.h"
#include "braid/ops/lact/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/lact/vjp_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/lact/lact-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// Backwards through orthogonalize, whose steps are in at.x: d (rows, columns) in place.
void orthogonalize_vjp(int64_t rows, int64_t columns, float norm, float* d, const MuonScratch& at) {
  const int64_t r = std::min(rows, columns), c = std::max(rows, columns), n = r * c;
  float *dx = at.dx, *next = at.dy;
  if (rows > columns) {
    simd::transpose(rows, columns, d, columns, dx, rows);
  } else {
    std::copy_n(d, n, dx);
  }
  for (int step = kMuonSteps - 1; step >= 0; --step) {
    const float *x = at.x[step], *coefficients = kMuon[step];
    muon_mix(r, c, coefficients, x, at);
    times(r, r, c, dx, c, at.transposed, false, at.d_b, r);
    std::fill_n(next, n, 0.0f);
    add_scaled_to(n, coefficients[0], dx, next);
    times(r, c, r, at.b, r, dx, true, next, c);  // b is symmetric
    times(r, r, r, at.d_b, r, at.a, false, at.a2, r);
    times(r, r, r, at.a, r, at.d_b, true, at.a2, r);
    std::fill_n(at.d_a, r * r, 0.0f);
    add_scaled_to(r * r, coefficients[1], at.d_b, at.d_a);
    add_scaled_to(r * r, coefficients[2], at.a2, at.d_a);
    simd::transpose(r, r, at.d_a, r, at.d_b, r);
    add_scaled_to(r * r, 1, at.d_a, at.d_b);
    times(r, c, r, at.d_b, r, x, true, next, c);
    std::swap(dx, next);
  }
  std::fill_n(next, n, 0.0f);
  add_scaled_to(n, 1.0f / (norm + kMuonEps), dx, next);
  if (norm > 0) add_scaled_to(n, -dot(n, dx, at.x[0]) / norm, at.x[0], next);
  if (rows > columns) {
    simd::transpose(r, c, next, c, d, r);
  } else {
    std::copy_n(next, n, d);
  }
}

// Backwards through the scaling of columns: x (rows, n) before it, d its gradient in place.
void scale_columns_vjp(int64_t rows, int64_t n, const float* x, const float* learned,
                       const float* norms, float* d, float* d_learned) {
  const V eps = hn::Set(D(), kNormEps), tiny = hn::Set(D(), 1e-30f);
  each(n, [&](auto access, size_t j) HWY_ATTR {
    V along = hn::Zero(D());
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * n + static_cast<int64_t>(j);
      along = hn::MulAdd(access.load(x + at), access.load(d + at), along);
    }
    const V was = access.load(norms + j), is = access.load(norms + n + j);
    const V inverse = hn::Div(hn::Set(D(), 1.0f), hn::Add(is, eps));
    const V factor = hn::Mul(was, inverse), d_was = hn::Mul(along, inverse);
    const V of_x = hn::Neg(hn::Div(hn::Mul(hn::Mul(factor, inverse), along), hn::Max(is, tiny)));
    const V of_learned = hn::Div(d_was, hn::Max(was, tiny));
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * n + static_cast<int64_t>(j);
      access.store(hn::MulAdd(of_x, access.load(x + at), hn::Mul(factor, access.load(d + at))),
                   d + at);
      access.store(hn::MulAdd(of_learned, access.load(learned + at), access.load(d_learned + at)),
                   d_learned + at);
    }
  });
}

// One head's columns or rows of the gradients.
struct LactHeadGrads {
  float *dq, *dk, *dv;       // of token 0; rows are H D apart
  float *d_lr, *d_momentum;  // of token 0; 3 H and H apart
  float* d_w[3];
};

class LactVjp {
 public:
  LactVjp(const LactHead& in, const LactVjpScratch& at, const LactHeadGrads& d)
      : in_(in),
        dims_(*in.dims),
        at_(at),
        block_(at.block),
        d_(d),
        state_(dims_, at.state),
        grad_(dims_, at.grad) {}

  // On return at.grad is the gradient of the sequence's initial state.
  void run(int64_t s, const float* h0, const float* dy, int64_t dy_stride, const float* d_final) {
    const int64_t size = dims_.state();
    if (d_final == nullptr) {
      std::fill_n(at_.grad, size, 0.0f);
    } else {
      std::copy_n(d_final + in_.h * size, size, at_.grad);
    }
    const int64_t first = dims_.offsets[s], end = dims_.offsets[s + 1];
    if (first == end) return;
    const int64_t phase = dims_.starts[s] % dims_.chunk;
    keep(s, h0);
    const int64_t chunks = (phase + end - first + dims_.chunk - 1) / dims_.chunk;
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t from = std::max(first, first - phase + c * dims_.chunk);
      const int64_t to = std::min(end, first - phase + (c + 1) * dims_.chunk);
      const LactHeadState before(dims_, at_.kept + c * size);
      std::copy_n(before.base(), size, at_.state);
      transpose_w1(dims_, state_, block_.w1t);
      if (to - (first - phase) == (c + 1) * dims_.chunk) {
        each_block(dims_, s, from, to,
                   [&](const LactBlock& b, bool) { add_gradients(in_, state_, b, block_); });
        update_vjp(before);
      }
      prepare();
      each_block(dims_, s, from, to, [&](const LactBlock& b, bool) {
        queries_vjp(b, dy + b.begin * dy_stride + in_.h * dims_.head_dim, dy_stride);
        keys_vjp(b);
      });
    }
  }

 private:
  int64_t stride() const { return dims_.heads * dims_.head_dim; }

  // The state before each chunk.
  void keep(int64_t s, const float* h0) {
    const int64_t size = dims_.state();
    load_lact_state(in_, s, h0, state_);
    transpose_w1(dims_, state_, block_.w1t);
    float* to = at_.kept;
    std::copy_n(at_.state, size, to);
    each_block(dims_, s, dims_.offsets[s], dims_.offsets[s + 1],
               [&](const LactBlock& b, bool whole) {
                 add_gradients(in_, state_, b, block_);
                 if (!whole || b.begin + b.rows == dims_.offsets[s + 1]) return;
                 update_weights(in_, state_, block_);
                 transpose_w1(dims_, state_, block_.w1t);
                 std::copy_n(at_.state, size, to += size);
               });
  }

  // Backwards through the update of a whole chunk, whose sums are in state_.
  void update_vjp(const LactHeadState& before) {
    const int64_t n = dims_.matrix();
    const auto chunk = static_cast<float>(dims_.chunk);
    float d_gates = 0;
    for (int m = 0; m < 3; ++m) {
      const int64_t rows = dims_.rows(m), columns = dims_.columns(m);
      float *x = block_.update, *d = grad_.gradient(m);
      const float norm = make_update(dims_, state_, m, x, block_.muon);
      add_scaled_to(n, 1, state_.w(m), x);
      column_norms(rows, columns, in_.learned(m), block_.norms);
      column_norms(rows, columns, x, block_.norms + columns);
      scale_columns_vjp(rows, columns, x, in_.learned(m), block_.norms, grad_.w(m), d_.d_w[m]);
      std::copy_n(grad_.w(m), n, d);
      if (dims_.muon) orthogonalize_vjp(rows, columns, norm, d, block_.muon);
      if (!dims_.momentum) continue;
      add_scaled_to(n, 1, grad_.momentum(m), d);
      d_gates += dot(n, d, before.momentum(m));
      scale_to(n, *state_.gate_sum() / chunk, d, grad_.momentum(m));
    }
    if (dims_.momentum) *grad_.gate_sum() = d_gates / chunk;
  }

  static void scale_to(int64_t n, float factor, const float* x, float* y) {
    const V f = hn::Set(D(), factor);
    each(n, [&](auto access, size_t i)
                HWY_ATTR { access.store(hn::Mul(f, access.load(x + i)), y + i); });
  }

  // Transposes that serve all blocks of a chunk.
  void prepare() const {
    for (int m = 0; m < 3; ++m) {
      simd::transpose(dims_.rows(m), dims_.columns(m), state_.w(m), dims_.columns(m), at_.wt[m],
                      dims_.rows(m));
      simd::transpose(dims_.rows(m), dims_.columns(m), grad_.gradient(m), dims_.columns(m),
                      at_.gt[m], dims_.rows(m));
    }
  }

  // From gradients d_g, d_u of x W0 and x W2: adds to the weights' gradients, and to dx or sets it.
  void inputs_vjp(int64_t rows, const float* x, int64_t x_row, bool add, float* dx) const {
    const int64_t n = dims_.head_dim, F = dims_.hidden;
    add_outer(rows, F, n, x, x_row, at_.d_g, F, grad_.w(0));
    add_outer(rows, F, n, x, x_row, at_.d_u, F, grad_.w(2));
    times(rows, n, F, at_.d_g, F, at_.wt[0], add, dx, stride());
    times(rows, n, F, at_.d_u, F, at_.wt[2], true, dx, stride());
  }

  void queries_vjp(const LactBlock& b, const float* dy, int64_t dy_stride) const {
    const int64_t n = dims_.head_dim, F = dims_.hidden;
    const float* q = in_.q(b.begin);
    hidden_rows(dims_, state_, b.rows, q, dims_.q_stride, block_);
    times(b.rows, F, n, dy, dy_stride, at_.wt[1], false, at_.d_h, F);
    add_outer(b.rows, n, F, block_.h, F, dy, dy_stride, grad_.w(1));
    each(b.rows * F, [&](auto access, size_t i) HWY_ATTR {
      const V g = access.load(block_.g + i), dh = access.load(at_.d_h + i);
      const V slope = sv::silu_slope(g, sv::sigmoid(g));
      access.store(hn::Mul(dh, access.load(block_.s + i)), at_.d_u + i);
      access.store(hn::Mul(hn::Mul(dh, access.load(block_.u + i)), slope), at_.d_g + i);
    });
    inputs_vjp(b.rows, q, dims_.q_stride, false, d_.dq + b.begin * stride());
  }

  // dx_i (n), the gradient of a row scaled by learning rate `which`: adds lr dx to dk, sets d_lr.
  void scaled_keys_vjp(const LactBlock& b, int which, bool add) const {
    const int64_t n = dims_.head_dim;
    for (int64_t i = 0; i < b.rows; ++i) {
      const int64_t t = b.begin + i;
      const float *dx = at_.dx + i * n, lr = *in_.lr(t, which);
      float* dk = d_.dk + t * stride();
      d_.d_lr[(t * 3 + which) * dims_.heads] = dot(n, dx, in_.k(t));
      if (!add) std::fill_n(dk, n, 0.0f);
      add_scaled_to(n, lr, dx, dk);
    }
  }

  // What the block added to the sums, from the gradients of the sums.
  void keys_vjp(const LactBlock& b) const {
    const int64_t n = dims_.head_dim, F = dims_.hidden, t = b.begin, rows = b.rows;
    const float *k = in_.k(t), *v = in_.v(t);
    float *dv = d_.dv + t * stride(), *dk = d_.dk + t * stride();
    hidden_rows(dims_, state_, rows, k, dims_.k_stride, block_);
    times(rows, F, n, v, dims_.v_stride, at_.wt[1], false, block_.dh, F);
    // The sum for W1: (lr1 h)^T v.
    scale_by(rows, F, in_.lr(t, 1), in_.lr_stride(), block_.h, F, block_.scaled);
    times(rows, n, F, block_.scaled, F, grad_.gradient(1), false, dv, stride());
    times(rows, F, n, v, dims_.v_stride, at_.gt[1], false, at_.d_h, F);
    for (int64_t i = 0; i < rows; ++i) {
      d_.d_lr[((t + i) * 3 + 1) * dims_.heads] = dot(F, at_.d_h + i * F, block_.h + i * F);
    }
    scale_by(rows, F, in_.lr(t, 1), in_.lr_stride(), at_.d_h, F, at_.d_h);
    slopes(rows * F);
    // Those for W0 and W2: (lr k)^T e.
    times(rows, n, F, block_.e, F, at_.gt[0], false, at_.dx, n);
    scaled_keys_vjp(b, 0, false);
    times(rows, n, F, at_.d_g, F, at_.gt[2], false, at_.dx, n);
    scaled_keys_vjp(b, 2, true);
    times(rows, F, n, k, dims_.k_stride, grad_.gradient(0), false, at_.d_e0, F);
    scale_by(rows, F, in_.lr(t, 0), in_.lr_stride(), at_.d_e0, F, at_.d_e0);
    times(rows, F, n, k, dims_.k_stride, grad_.gradient(2), false, at_.d_e2, F);
    scale_by(rows, F, in_.lr(t, 2), in_.lr_stride(), at_.d_e2, F, at_.d_e2);
    activations_vjp(rows * F);
    times(rows, n, F, block_.e, F, state_.w(1), true, dv, stride());
    add_outer(rows, n, F, block_.e, F, v, dims_.v_stride, grad_.w(1));
    inputs_vjp(rows, k, dims_.k_stride, true, dk);
    if (!dims_.momentum) return;
    for (int64_t i = 0; i < rows; ++i) d_.d_momentum[(t + i) * dims_.heads] = *grad_.gate_sum();
  }

  // slope, curve; e <- e0 = dh u slope, d_g <- e2 = dh s.
  void slopes(int64_t count) const {
    const V one = hn::Set(D(), 1.0f), two = hn::Set(D(), 2.0f);
    each(count, [&](auto access, size_t i) HWY_ATTR {
      const V g = access.load(block_.g + i), dh = access.load(block_.dh + i);
      const V p = sv::sigmoid(g), slope = sv::silu_slope(g, p);
      const V inner = hn::MulAdd(g, hn::NegMulAdd(two, p, one), two);
      access.store(slope, at_.slope + i);
      access.store(hn::Mul(hn::Mul(p, hn::Sub(one, p)), inner), at_.curve + i);
      access.store(hn::Mul(hn::Mul(dh, access.load(block_.u + i)), slope), block_.e + i);
      access.store(hn::Mul(dh, access.load(block_.s + i)), at_.d_g + i);
    });
  }

  // From d_e0, d_e2 and d_h: the gradients of dh (into e), u and g.
  void activations_vjp(int64_t count) const {
    each(count, [&](auto access, size_t i) HWY_ATTR {
      const V e0 = access.load(at_.d_e0 + i), e2 = access.load(at_.d_e2 + i);
      const V dh = access.load(block_.dh + i), u = access.load(block_.u + i);
      const V s = access.load(block_.s + i), d_h = access.load(at_.d_h + i);
      const V slope = access.load(at_.slope + i), curve = access.load(at_.curve + i);
      access.store(hn::MulAdd(hn::Mul(e0, u), slope, hn::Mul(e2, s)), block_.e + i);
      access.store(hn::MulAdd(hn::Mul(e0, dh), slope, hn::Mul(d_h, s)), at_.d_u + i);
      const V ds = hn::MulAdd(e2, dh, hn::Mul(d_h, u));
      access.store(hn::MulAdd(hn::Mul(hn::Mul(e0, dh), u), curve, hn::Mul(ds, slope)), at_.d_g + i);
    });
  }

  const LactHead& in_;
  const LactDims& dims_;
  const LactVjpScratch& at_;
  const LactScratch& block_;
  LactHeadGrads d_;
  LactHeadState state_, grad_;
};

void lact_head_vjp(const LactDims& dims, const LactOperands& operands, int64_t h,
                   const float* const* h0, const float* dy, int64_t dy_stride,
                   const float* const* d_final, float* const* d_initial, float* scratch,
                   const LactGrads& grads) {
  TttCarver carver(scratch);
  const LactVjpScratch at(dims, carver);
  const int64_t n = dims.head_dim, size = dims.matrix();
  const LactHead in{.dims = &dims, .in = &operands, .h = h};
  LactHeadGrads d{.dq = grads.dq + h * n,
                  .dk = grads.dk + h * n,
                  .dv = grads.dv + h * n,
                  .d_lr = grads.d_lr + h,
                  .d_momentum = dims.momentum ? grads.d_momentum + h : nullptr,
                  .d_w = {}};
  for (int m = 0; m < 3; ++m) {
    d.d_w[m] = grads.d_w[m] + h * size;
    std::fill_n(d.d_w[m], size, 0.0f);
  }
  LactVjp vjp(in, at, d);
  for (int64_t s = 0; s < dims.sequences; ++s) {
    vjp.run(s, h0[s], dy, dy_stride, d_final[s]);
    const bool fresh = dims.fresh(s, h0[s]);
    for (int m = 0; m < 3 && fresh; ++m) add_scaled_to(size, 1, at.grad + m * size, d.d_w[m]);
    if (d_initial[s] == nullptr) continue;
    float* to = d_initial[s] + h * dims.state();
    fresh ? std::fill_n(to, dims.state(), 0.0f) : std::copy_n(at.grad, dims.state(), to);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(lact_head_vjp);

int64_t lact_vjp_scratch(const LactDims& dims) {
  TttCarver carver(nullptr);
  const LactVjpScratch at(dims, carver);
  return carver.size();
}

void lact_vjp(ThreadPool& threads, const LactDims& dims, const LactOperands& in,
              const float* const* h0, const float* dy, int64_t dy_stride,
              const float* const* d_final, float* const* d_initial, float* scratch,
              const LactGrads& grads) {
  const int64_t size = lact_vjp_scratch(dims);
  threads.parallel_for(dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t h = begin; h < end; ++h) {
      HWY_DYNAMIC_DISPATCH(lact_head_vjp)
      (dims, in, h, h0, dy, dy_stride, d_final, d_initial, scratch + worker * size, grads);
    }
  });
}

}  // namespace braid::cpu
#endif
