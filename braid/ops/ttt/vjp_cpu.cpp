// The backward pass: a task takes one head through all sequences, each from its last mini-batch to
// its first. Fast weights are kept at every few mini-batches of one sequence only, and those in
// between made again.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/ttt/kernels.h"
#include "braid/ops/ttt/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ttt/vjp_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ttt/vjp-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// One head of one sequence.
class SequenceVjp {
 public:
  SequenceVjp(const TttDims& dims, const TttOperands& operands, int64_t s, int64_t h,
              const float* h0, const TttVjpScratch& at)
      : dims_(dims),
        operands_(operands),
        s_(s),
        h0_(h0),
        in_{.dims = &dims, .in = &operands, .h = h},
        at_(at),
        norm_(in_.norm(at.x, at.g)),
        cells_(dims, s) {}

  void run(const float* dy, int64_t dy_stride, const float* d_final, const TttHeadGrads& d) {
    const int64_t size = dims_.state(), weights = dims_.weights();
    const TttHeadState grad(dims_, at_.grad);
    if (d_final == nullptr) {
      std::fill_n(at_.grad, size, 0.0f);
    } else {
      std::copy_n(d_final + in_.h * size, size, at_.grad);
      if (cells_.count() > 0) clear_rows(dims_, grad, cells_.phase_end());
    }
    if (cells_.count() == 0) return;  // the state was handed on
    const int64_t interval = ttt_interval(dims_, cells_.count());
    keep(interval);
    for (int64_t first = (cells_.count() - 1) / interval * interval; first >= 0;
         first -= interval) {
      const int64_t end = std::min(cells_.count(), first + interval);
      make_between(first, end, at_.kept + first / interval * weights);
      for (int64_t c = end - 1; c >= first; --c) {
        std::copy_n(at_.between + (c - first) * weights, weights, at_.state);
        if (c == 0) load_rows();
        const Inner inner = inner_of(c);
        write_rows(inner, in_, norm_, at_.saved, dims_.mini_batch);
        CellVjp(inner, grad, in_, norm_, at_, d)
            .run(dy + cells_[c].begin * dy_stride + in_.h * dims_.head_dim, dy_stride);
        if (c > 0) clear_rows(dims_, grad, 0);
      }
    }
    clear_rows(dims_, grad, cells_.phase());
  }

 private:
  Inner inner_of(int64_t c) const {
    return {.dims = &dims_,
            .state = TttHeadState(dims_, at_.state),
            .seen = {.cell = cells_[c], .rate = operands_.rate, .mini_batch = dims_.mini_batch},
            .at = &at_.cell};
  }

  // The rows that the first cell finds.
  void load_rows() const {
    const int64_t weights = dims_.weights(), size = dims_.state();
    if (!dims_.fresh(s_, h0_)) {
      std::copy_n(h0_ + in_.h * size + weights, size - weights, at_.state + weights);
    } else {
      std::fill_n(at_.state + weights, size - weights, 0.0f);
    }
  }

  // From the weights in `state` before cell c to those after it.
  void advance(int64_t c) const {
    const Inner inner = inner_of(c);
    if (inner.seen.cell.end() < dims_.mini_batch) return;  // the last one: nothing is committed
    write_rows(inner, in_, norm_, at_.saved, dims_.mini_batch);
    commit(inner);
  }

  // Fast weights before every interval-th cell.
  void keep(int64_t interval) const {
    load_state(dims_, operands_, s_, in_.h, h0_, at_.state);
    for (int64_t c = 0; c < cells_.count(); ++c) {
      if (c % interval == 0) {
        std::copy_n(at_.state, dims_.weights(), at_.kept + c / interval * dims_.weights());
      }
      if (c / interval < (cells_.count() - 1) / interval) advance(c);
    }
  }

  // Fast weights before the cells [first, end).
  void make_between(int64_t first, int64_t end, const float* from) const {
    const int64_t weights = dims_.weights();
    std::copy_n(from, weights, at_.state);
    if (first == 0) load_rows();
    for (int64_t c = first; c < end; ++c) {
      std::copy_n(at_.state, weights, at_.between + (c - first) * weights);
      if (c + 1 < end) advance(c);
    }
  }

  const TttDims& dims_;
  const TttOperands& operands_;
  int64_t s_;
  const float* h0_;
  HeadOperands in_;
  const TttVjpScratch& at_;
  HeadNorm norm_;
  TttCells cells_;
};

void add_row(int64_t n, const float* x, float* y) {
  each(n, [&](auto access, size_t i)
              HWY_ATTR { access.store(hn::Add(access.load(x + i), access.load(y + i)), y + i); });
}

void ttt_head_vjp(const TttDims& dims, const TttOperands& in, int64_t h, const float* const* h0,
                  const float* dy, int64_t dy_stride, const float* const* d_final,
                  float* const* d_initial, float* scratch, const TttGrads& grads) {
  TttCarver carver(scratch);
  const TttVjpScratch at(dims, carver);
  const int64_t n = dims.head_dim, K = dims.mini_batch;
  const TttHeadGrads d{.dq = grads.dq + h * n,
                       .dk = grads.dk + h * n,
                       .dv = grads.dv + h * n,
                       .d_lr = grads.d_lr + h,
                       .d_norm_weight = dims.norm ? grads.d_norm_weight + h * n : nullptr,
                       .d_norm_bias = dims.norm ? grads.d_norm_bias + h * n : nullptr};
  if (dims.norm) {
    std::fill_n(d.d_norm_weight, n, 0.0f);
    std::fill_n(d.d_norm_bias, n, 0.0f);
  }
  std::fill_n(at.d_rate, K, 0.0f);
  const auto of_head = [&](float* base, int64_t count) { return base + h * count; };
  for (int l = 0; l < dims.layers(); ++l) {
    std::fill_n(of_head(grads.d_w[l], dims.in(l)*dims.out(l)), dims.in(l)*dims.out(l), 0.0f);
    std::fill_n(of_head(grads.d_b[l], dims.out(l)), dims.out(l), 0.0f);
  }
  for (int64_t s = 0; s < dims.sequences; ++s) {
    const bool fresh = dims.fresh(s, h0[s]);
    SequenceVjp(dims, in, s, h, h0[s], at).run(dy, dy_stride, d_final[s], d);
    const TttHeadState grad(dims, at.grad);
    for (int l = 0; l < dims.layers() && fresh; ++l) {
      const int64_t size = dims.in(l)*dims.out(l);
      add_row(size, grad.w(l), of_head(grads.d_w[l], size));
      add_row(dims.out(l), grad.b(l), of_head(grads.d_b[l], dims.out(l)));
    }
    if (d_initial[s] == nullptr) continue;
    float* to = d_initial[s] + h * dims.state();
    fresh ? std::fill_n(to, dims.state(), 0.0f) : std::copy_n(at.grad, dims.state(), to);
  }
  std::copy_n(at.d_rate, K, grads.d_rate + h * K);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(ttt_head_vjp);

int64_t ttt_vjp_scratch(const TttDims& dims) {
  TttCarver carver(nullptr);
  const TttVjpScratch at(dims, carver);
  return carver.size();
}

void ttt_vjp(ThreadPool& threads, const TttDims& dims, const TttOperands& in,
             const float* const* h0, const float* dy, int64_t dy_stride,
             const float* const* d_final, float* const* d_initial, float* scratch,
             const TttGrads& grads) {
  const int64_t size = ttt_vjp_scratch(dims);
  threads.parallel_for(dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t h = begin; h < end; ++h) {
      HWY_DYNAMIC_DISPATCH(ttt_head_vjp)
      (dims, in, h, h0, dy, dy_stride, d_final, d_initial, scratch + worker * size, grads);
    }
  });
}

}  // namespace braid::cpu
#endif
