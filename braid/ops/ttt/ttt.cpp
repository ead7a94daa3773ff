#include "braid/ops/ttt/ttt.h"

#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/ssd/decayed_scan.h"
#include "braid/ops/ttt/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::ttt>;
using Backward = Kernel<&cpu::ttt_vjp>;

using Pointers = std::vector<float*>;
using ConstPointers = std::vector<const float*>;

ConstPointers const_rows(const Pointers& rows) { return {rows.begin(), rows.end()}; }

void check_one(const Tensor& x, const Shape& want, bool dense, const char* name) {
  check(x.defined() && x.shape() == want && x.dtype() == DType::kF32 && (!dense || x.contiguous()),
        "ttt: {} is {} {}, want {}f32 {}", name, to_string(x.dtype()), to_string(x.shape()),
        dense ? "a dense " : "", to_string(want));
}

void check_options(const TttOptions& o) {
  check(o.heads > 0 && o.head_dim > 0 && o.hidden >= 0 && o.mini_batch > 0 && o.steps > 0,
        "ttt: heads {}, head_dim {}, hidden {}, mini_batch {}, steps {}; want them positive, and "
        "hidden 0 for a linear model",
        o.heads, o.head_dim, o.hidden, o.mini_batch, o.steps);
}

void check_inputs(const TttInputs& in, const SequenceBatch& batch, const TttOptions& o) {
  check_options(o);
  const int64_t tokens = batch.tokens(), H = o.heads, D = o.head_dim;
  const int64_t width = o.hidden > 0 ? o.hidden : D;
  check_one(in.q, {tokens, H * D}, false, "q");
  check_one(in.k, {tokens, H * D}, false, "k");
  check_one(in.v, {tokens, H * D}, false, "v");
  check_one(in.lr, {tokens, H}, true, "lr");
  check_one(in.rate, {o.mini_batch}, true, "rate");
  if (o.norm) {
    check_one(in.norm_weight, {H, D}, true, "norm_weight");
    check_one(in.norm_bias, {H, D}, true, "norm_bias");
  }
  check_one(in.w1, {H, D, width}, true, "w1");
  check_one(in.b1, {H, width}, true, "b1");
  if (o.hidden > 0) {
    check_one(in.w2, {H, width, D}, true, "w2");
    check_one(in.b2, {H, D}, true, "b2");
  }
}

TttDims dims_of(const TttInputs& in, const SequenceBatch& batch, const TttOptions& o) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .heads = o.heads,
          .head_dim = o.head_dim,
          .hidden = o.hidden,
          .mini_batch = o.mini_batch,
          .steps = o.steps,
          .norm = o.norm,
          .residual = o.residual,
          .eps = o.eps,
          .q_stride = in.q.row_stride(),
          .k_stride = in.k.row_stride(),
          .v_stride = in.v.row_stride(),
          .offsets = batch.offsets.data(),
          .starts = batch.starts.data()};
}

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

TttOperands operands_of(const TttInputs& in, const TttOptions& o) {
  const bool two = o.hidden > 0;
  return {.q = in.q.f32(),
          .k = in.k.f32(),
          .v = in.v.f32(),
          .lr = in.lr.f32(),
          .rate = in.rate.f32(),
          .norm_weight = o.norm ? in.norm_weight.f32() : nullptr,
          .norm_bias = o.norm ? in.norm_bias.f32() : nullptr,
          .fresh = {.w = {in.w1.f32(), two ? in.w2.f32() : nullptr},
                    .b = {in.b1.f32(), two ? in.b2.f32() : nullptr}}};
}

Tensor forward(Context& ctx, const TttInputs& in, const SequenceBatch& batch, const TttOptions& o,
               const Pointers& h0, const Pointers& ht) {
  const TttDims dims = dims_of(in, batch, o);
  Tensor y = ctx.empty(in.q.shape());
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ttt_scratch(dims)});
  Forward::run(ctx, "ttt", dims, operands_of(in, o), const_rows(h0).data(), ht.data(),
               scratch.f32(), y.f32());
  return y;
}

// The sum over heads, in order: (H, K) -> (K).
Tensor sum_heads(Context& ctx, const Tensor& x) {
  Tensor y = ctx.zeros({x.dim(1)});
  for (int64_t h = 0; h < x.rows(); ++h) {
    for (int64_t i = 0; i < x.dim(1); ++i) y.f32()[i] += x.f32()[h * x.dim(1) + i];
  }
  return y;
}

struct Saved {
  TttInputs in;
  Tensor initial;
  SequenceBatch batch;
  TttOptions options;
};

std::vector<Tensor> recorded(const TttInputs& in, const Tensor& initial) {
  return {in.q,         in.k,  in.v,  in.lr, in.rate, in.norm_weight,
          in.norm_bias, in.w1, in.b1, in.w2, in.b2,   initial};
}

// In the order of `recorded`.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const TttOptions& o = saved.options;
  const int64_t sequences = saved.batch.sequences();
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.in.q.shape());
  const TttDims dims = dims_of(saved.in, saved.batch, o);
  Grads out;
  for (const Tensor& x : recorded(saved.in, saved.initial)) {
    out.push_back(x.defined() ? ctx.empty(x.shape()) : Tensor());
  }
  const Tensor d_rate = ctx.empty({o.heads, o.mini_batch});
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ttt_vjp_scratch(dims)});
  Backward::run(ctx, "ttt", dims, operands_of(saved.in, o),
                const_rows(state_rows(saved.initial, sequences)).data(), dy.f32(), dy.row_stride(),
                const_rows(state_rows(d_final, sequences)).data(),
                state_rows(out[11], sequences).data(), scratch.f32(),
                TttGrads{.dq = out[0].f32(),
                         .dk = out[1].f32(),
                         .dv = out[2].f32(),
                         .d_lr = out[3].f32(),
                         .d_rate = d_rate.f32(),
                         .d_norm_weight = o.norm ? out[5].f32() : nullptr,
                         .d_norm_bias = o.norm ? out[6].f32() : nullptr,
                         .d_w = {out[7].f32(), pointer(out[9])},
                         .d_b = {out[8].f32(), pointer(out[10])}});
  out[4] = sum_heads(ctx, d_rate);
  return out;
}

}  // namespace

int64_t ttt_state_size(const TttOptions& options) {
  check_options(options);
  const TttDims dims{.heads = options.heads,
                     .head_dim = options.head_dim,
                     .hidden = options.hidden,
                     .mini_batch = options.mini_batch,
                     .steps = options.steps};
  return dims.state();
}

TttResult ttt(Context& ctx, const TttInputs& inputs, const Tensor& initial,
              const SequenceBatch& batch, const TttOptions& options) {
  check_inputs(inputs, batch, options);
  const Shape states{batch.sequences(), options.heads, ttt_state_size(options)};
  if (initial.defined()) check_one(initial, states, true, "initial");
  TttResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = forward(ctx, inputs, batch, options, state_rows(initial, batch.sequences()),
                     state_rows(result.final_state, batch.sequences()));
  if (Tape* tape = ctx.tape()) {
    auto saved = std::make_shared<const Saved>(Saved{inputs, initial, batch, options});
    tape->record(recorded(inputs, initial), {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor ttt_in_place(Context& ctx, const TttInputs& inputs, std::span<float* const> state,
                    const SequenceBatch& batch, const TttOptions& options) {
  check(ctx.tape() == nullptr, "ttt: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(), "ttt: {} states, want one for each of {} sequences",
        state.size(), batch.sequences());
  const Pointers states(state.begin(), state.end());
  return forward(ctx, inputs, batch, options, states, states);
}

}  // namespace braid
