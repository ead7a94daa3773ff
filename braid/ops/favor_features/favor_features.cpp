#include "braid/ops/favor_features/favor_features.h"

#include <utility>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/favor_features/kernels.h"

namespace braid {
namespace {

using Scores = Kernel<&cpu::favor_scores>;
using RunningMaximum = Kernel<&cpu::favor_running_maximum>;
using Exp = Kernel<&cpu::favor_exp>;
using ExpVjp = Kernel<&cpu::favor_exp_vjp>;
using RunningMaximumVjp = Kernel<&cpu::favor_running_maximum_vjp>;
using ArgMaximum = Kernel<&cpu::favor_arg_maximum>;
using ScoresVjp = Kernel<&cpu::favor_scores_vjp>;

using Pointers = std::vector<float*>;
using ConstPointers = std::vector<const float*>;

constexpr const char* kName = "favor_features";

// What a row needs of the forward pass; the scores are made again.
struct Saved {
  Tensor x, w;
  Tensor c;  // (T, H)
  FavorDims dims;
};

FavorDims check_inputs(const Tensor& x, const Tensor& w, const FavorOptions& o) {
  check(o.heads > 0 && o.dim > 0 && o.features > 0 && o.eps >= 0,
        "favor_features: heads {}, dim {}, features {}, eps {}; want them positive", o.heads, o.dim,
        o.features, o.eps);
  check(x.rank() == 2 && x.dim(1) == o.heads * o.dim && x.dtype() == DType::kF32,
        "favor_features: x is {} {}, want f32 (T, {})", to_string(x.dtype()), to_string(x.shape()),
        o.heads * o.dim);
  check(w.shape() == Shape{o.features, o.dim} && w.dtype() == DType::kF32 && w.contiguous(),
        "favor_features: w is {} {}, want a dense f32 ({}, {})", to_string(w.dtype()),
        to_string(w.shape()), o.features, o.dim);
  return {.tokens = x.rows(),
          .heads = o.heads,
          .dim = o.dim,
          .features = o.features,
          .x_stride = x.row_stride(),
          .dphi_stride = o.heads * o.features,
          .eps = o.eps};
}

struct ScoresAndTop {
  Tensor s, top;  // (T, H M), (T, H)
};

ScoresAndTop scores(Context& ctx, const FavorDims& dims, const Tensor& x, const Tensor& w) {
  ScoresAndTop out{ctx.empty({dims.tokens, dims.heads * dims.features}),
                   ctx.empty({dims.tokens, dims.heads})};
  const Tensor wt = ctx.empty({dims.dim, dims.features});
  const Tensor scratch = ctx.empty({ctx.threads().size(), dims.scratch()});
  Scores::run(ctx, kName, dims, x.f32(), w.f32(), wt.f32(), scratch.f32(), out.s.f32(),
              out.top.f32());
  return out;
}

// dx, given the gradient of the features and a function that turns that of c, (T, H), into that of
// the rows' largest scores, in place.
template <class ThroughMaximum>
Tensor input_gradient(Context& ctx, const Saved& saved, const Tensor& dphi,
                      ThroughMaximum&& through_maximum) {
  FavorDims dims = saved.dims;
  const ScoresAndTop at = scores(ctx, dims, saved.x, saved.w);
  const Tensor dc = ctx.empty({dims.tokens, dims.heads});
  const Tensor arg = ctx.empty({dims.tokens, dims.heads}, DType::kI32);
  ArgMaximum::run(ctx, kName, dims, at.s.f32(), at.top.f32(), arg.data<int32_t>());
  const Tensor g = dphi.defined() ? dphi : ctx.zeros(at.s.shape());
  dims.dphi_stride = g.row_stride();
  ExpVjp::run(ctx, kName, dims, saved.c.f32(), g.f32(), at.s.f32(), dc.f32());
  through_maximum(dc);
  Tensor dx = ctx.empty(saved.x.shape());
  const Tensor scratch = ctx.empty({ctx.threads().size(), dims.scratch()});
  ScoresVjp::run(ctx, kName, dims, saved.x.f32(), saved.w.f32(), dc.f32(), arg.data<int32_t>(),
                 scratch.f32(), at.s.f32(), dx.f32());
  return dx;
}

FavorMaximumDims maximum_dims(const SequenceBatch& batch, int64_t heads) {
  return {.sequences = batch.sequences(), .heads = heads, .offsets = batch.offsets.data()};
}

Pointers rows_of(const Tensor& x, int64_t sequences) {
  Pointers rows(static_cast<size_t>(sequences), nullptr);
  for (size_t s = 0; x.defined() && s < rows.size(); ++s) {
    rows[s] = x.f32() + static_cast<int64_t>(s) * x.row_stride();
  }
  return rows;
}
ConstPointers const_rows(const Pointers& rows) { return {rows.begin(), rows.end()}; }

// Features and decays; also c.
std::pair<FavorKeys, Tensor> keys_forward(Context& ctx, const FavorDims& dims, const Tensor& x,
                                          const Tensor& w, const SequenceBatch& batch,
                                          const Pointers& start, const Pointers& end) {
  check(batch.tokens() == x.rows(), "favor_features: {} rows, want the {} of the batch", x.rows(),
        batch.tokens());
  const ScoresAndTop at = scores(ctx, dims, x, w);
  Tensor c = ctx.empty({dims.tokens, dims.heads});
  const FavorKeys keys{.features = at.s, .log_decay = ctx.empty(c.shape()), .maximum = {}};
  RunningMaximum::run(ctx, kName, maximum_dims(batch, dims.heads), at.top.f32(),
                      const_rows(start).data(), end.data(), c.f32(), keys.log_decay.f32());
  Exp::run(ctx, kName, dims, c.f32(), at.s.f32());
  return {keys, c};
}

}  // namespace

Tensor favor_queries(Context& ctx, const Tensor& x, const Tensor& w, const FavorOptions& options) {
  const FavorDims dims = check_inputs(x, w, options);
  ScoresAndTop at = scores(ctx, dims, x, w);
  Exp::run(ctx, kName, dims, at.top.f32(), at.s.f32());
  if (Tape* tape = ctx.tape()) {
    const Saved saved{x, w, at.top, dims};
    tape->record({x}, at.s, [saved](Context& inner, const Tensor& dphi) -> Grads {
      return {input_gradient(inner, saved, dphi, [](const Tensor&) {})};
    });
  }
  return at.s;
}

FavorKeys favor_keys(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& initial,
                     const SequenceBatch& batch, const FavorOptions& options) {
  const FavorDims dims = check_inputs(x, w, options);
  const int64_t S = batch.sequences();
  const Shape states{S, dims.heads};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "favor_features: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  Tensor maximum = ctx.empty(states);
  auto [keys, c] = keys_forward(ctx, dims, x, w, batch, rows_of(initial, S), rows_of(maximum, S));
  keys.maximum = maximum;
  if (Tape* tape = ctx.tape()) {
    const Saved saved{x, w, c, dims};
    tape->record({x, initial}, {&keys.features, &keys.log_decay, &keys.maximum},
                 [saved, initial, batch](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   const int64_t sequences = batch.sequences();
                   const FavorMaximumDims of_maximum = maximum_dims(batch, saved.dims.heads);
                   const Tensor d_initial =
                       initial.defined() ? inner.empty(initial.shape()) : Tensor();
                   // The log decays' gradient as dense rows, which is what ops hand in.
                   check(!dys[1].defined() || dys[1].contiguous(),
                         "favor_features: the gradient of log_decay is strided, want it dense");
                   const Tensor dx = input_gradient(inner, saved, dys[0], [&](const Tensor& dc) {
                     RunningMaximumVjp::run(inner, kName, of_maximum, saved.c.f32(),
                                            const_rows(rows_of(initial, sequences)).data(),
                                            dys[1].defined() ? dys[1].f32() : nullptr,
                                            const_rows(rows_of(dys[2], sequences)).data(),
                                            rows_of(d_initial, sequences).data(), dc.f32());
                   });
                   return {dx, d_initial};
                 });
  }
  return keys;
}

FavorKeys favor_keys_in_place(Context& ctx, const Tensor& x, const Tensor& w,
                              std::span<float* const> maximum, const SequenceBatch& batch,
                              const FavorOptions& options) {
  check(ctx.tape() == nullptr,
        "favor_features: a maximum that is updated in place cannot be differentiated");
  const FavorDims dims = check_inputs(x, w, options);
  check(std::ssize(maximum) == batch.sequences(),
        "favor_features: {} maxima, want one for each of {} sequences", maximum.size(),
        batch.sequences());
  const Pointers rows(maximum.begin(), maximum.end());
  return keys_forward(ctx, dims, x, w, batch, rows, rows).first;
}

}  // namespace braid
