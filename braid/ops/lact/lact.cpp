#include "braid/ops/lact/lact.h"

#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/lact/kernels.h"
#include "braid/ops/ssd/decayed_scan.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::lact>;
using Backward = Kernel<&cpu::lact_vjp>;

using Pointers = std::vector<float*>;
using ConstPointers = std::vector<const float*>;

ConstPointers const_rows(const Pointers& rows) { return {rows.begin(), rows.end()}; }

void check_one(const Tensor& x, const Shape& want, bool dense, const char* name) {
  check(x.defined() && x.shape() == want && x.dtype() == DType::kF32 && (!dense || x.contiguous()),
        "lact: {} is {} {}, want {}f32 {}", name, to_string(x.dtype()), to_string(x.shape()),
        dense ? "a dense " : "", to_string(want));
}

void check_options(const LactOptions& o) {
  check(o.heads > 0 && o.head_dim > 0 && o.hidden > 0 && o.chunk > 0,
        "lact: heads {}, head_dim {}, hidden {}, chunk {}; want them positive", o.heads, o.head_dim,
        o.hidden, o.chunk);
}

void check_inputs(const LactInputs& in, const SequenceBatch& batch, const LactOptions& o) {
  check_options(o);
  const int64_t tokens = batch.tokens(), H = o.heads, D = o.head_dim, F = o.hidden;
  check_one(in.q, {tokens, H * D}, false, "q");
  check_one(in.k, {tokens, H * D}, false, "k");
  check_one(in.v, {tokens, H * D}, false, "v");
  check_one(in.lr, {tokens, 3 * H}, true, "lr");
  if (o.momentum) check_one(in.momentum, {tokens, H}, true, "momentum");
  check_one(in.w0, {H, D, F}, true, "w0");
  check_one(in.w1, {H, F, D}, true, "w1");
  check_one(in.w2, {H, D, F}, true, "w2");
}

LactDims dims_of(const LactInputs& in, const SequenceBatch& batch, const LactOptions& o) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .heads = o.heads,
          .head_dim = o.head_dim,
          .hidden = o.hidden,
          .chunk = o.chunk,
          .momentum = o.momentum,
          .muon = o.muon,
          .q_stride = in.q.row_stride(),
          .k_stride = in.k.row_stride(),
          .v_stride = in.v.row_stride(),
          .offsets = batch.offsets.data(),
          .starts = batch.starts.data()};
}

LactOperands operands_of(const LactInputs& in, const LactOptions& o) {
  return {.q = in.q.f32(),
          .k = in.k.f32(),
          .v = in.v.f32(),
          .lr = in.lr.f32(),
          .momentum = o.momentum ? in.momentum.f32() : nullptr,
          .w = {in.w0.f32(), in.w1.f32(), in.w2.f32()}};
}

Tensor forward(Context& ctx, const LactInputs& in, const SequenceBatch& batch, const LactOptions& o,
               const Pointers& h0, const Pointers& ht) {
  const LactDims dims = dims_of(in, batch, o);
  Tensor y = ctx.empty(in.q.shape());
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::lact_scratch(dims)});
  Forward::run(ctx, "lact", dims, operands_of(in, o), const_rows(h0).data(), ht.data(),
               scratch.f32(), y.f32());
  return y;
}

struct Saved {
  LactInputs in;
  Tensor initial;
  SequenceBatch batch;
  LactOptions options;
};

std::vector<Tensor> recorded(const LactInputs& in, const Tensor& initial) {
  return {in.q, in.k, in.v, in.lr, in.momentum, in.w0, in.w1, in.w2, initial};
}

// In the order of `recorded`.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const LactOptions& o = saved.options;
  const int64_t sequences = saved.batch.sequences();
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.in.q.shape());
  const LactDims dims = dims_of(saved.in, saved.batch, o);
  Grads out;
  for (const Tensor& x : recorded(saved.in, saved.initial)) {
    out.push_back(x.defined() ? ctx.empty(x.shape()) : Tensor());
  }
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::lact_vjp_scratch(dims)});
  Backward::run(ctx, "lact", dims, operands_of(saved.in, o),
                const_rows(state_rows(saved.initial, sequences)).data(), dy.f32(), dy.row_stride(),
                const_rows(state_rows(d_final, sequences)).data(),
                state_rows(out[8], sequences).data(), scratch.f32(),
                LactGrads{.dq = out[0].f32(),
                          .dk = out[1].f32(),
                          .dv = out[2].f32(),
                          .d_lr = out[3].f32(),
                          .d_momentum = o.momentum ? out[4].f32() : nullptr,
                          .d_w = {out[5].f32(), out[6].f32(), out[7].f32()}});
  return out;
}

}  // namespace

int64_t lact_state_size(const LactOptions& options) {
  check_options(options);
  const LactDims dims{
      .head_dim = options.head_dim, .hidden = options.hidden, .momentum = options.momentum};
  return dims.state();
}

LactResult lact(Context& ctx, const LactInputs& inputs, const Tensor& initial,
                const SequenceBatch& batch, const LactOptions& options) {
  check_inputs(inputs, batch, options);
  const Shape states{batch.sequences(), options.heads, lact_state_size(options)};
  if (initial.defined()) check_one(initial, states, true, "initial");
  LactResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = forward(ctx, inputs, batch, options, state_rows(initial, batch.sequences()),
                     state_rows(result.final_state, batch.sequences()));
  if (Tape* tape = ctx.tape()) {
    LactInputs kept = inputs;
    if (!options.momentum) kept.momentum = Tensor();
    auto saved = std::make_shared<const Saved>(Saved{kept, initial, batch, options});
    tape->record(recorded(kept, initial), {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor lact_in_place(Context& ctx, const LactInputs& inputs, std::span<float* const> state,
                     const SequenceBatch& batch, const LactOptions& options) {
  check(ctx.tape() == nullptr, "lact: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(),
        "lact: {} states, want one for each of {} sequences", state.size(), batch.sequences());
  const Pointers states(state.begin(), state.end());
  return forward(ctx, inputs, batch, options, states, states);
}

}  // namespace braid
