#include "braid/ops/ssd/ssd.h"

#include <memory>
#include <utility>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/ssd/decayed_scan.h"
#include "braid/ops/ssd/kernels.h"

namespace braid {
namespace {

using Discretise = Kernel<&cpu::ssd_discretise>;
using TokenGrads = Kernel<&cpu::ssd_token_grads>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

void check_vector(const Tensor& x, int64_t heads, const char* name) {
  check(x.defined() && x.shape() == Shape{heads} && x.dtype() == DType::kF32,
        "ssd: {} is {} {}, want f32 ({})", name, to_string(x.dtype()), to_string(x.shape()), heads);
}

void check_rows(const Tensor& x, int64_t tokens, int64_t width, const char* name) {
  check(x.defined() && x.shape() == Shape{tokens, width} && x.dtype() == DType::kF32,
        "ssd: {} is {} {}, want f32 ({}, {})", name, to_string(x.dtype()), to_string(x.shape()),
        tokens, width);
}

void check_inputs(const SsdInputs& in, const SequenceBatch& batch, const SsdOptions& o) {
  check(o.heads > 0 && o.head_dim > 0 && o.groups > 0 && o.state > 0 && o.chunk > 0 &&
            o.heads % o.groups == 0,
        "ssd: heads {}, head_dim {}, groups {}, state {}, chunk {}; want them positive and heads a "
        "multiple of groups",
        o.heads, o.head_dim, o.groups, o.state, o.chunk);
  check(0 <= o.dt_min && o.dt_min <= o.dt_max, "ssd: dt bounds [{}, {}], want 0 <= min <= max",
        o.dt_min, o.dt_max);
  const int64_t tokens = batch.tokens();
  check_rows(in.x, tokens, o.heads * o.head_dim, "x");
  check_rows(in.b, tokens, o.groups * o.state, "b");
  check_rows(in.c, tokens, o.groups * o.state, "c");
  check_rows(in.dt_raw, tokens, o.heads, "dt_raw");
  check_vector(in.dt_bias, o.heads, "dt_bias");
  check_vector(in.a_log, o.heads, "a_log");
  if (in.d.defined()) check_vector(in.d, o.heads, "d");
}

// The scan with u = x and dt as its scale.
DecayedScan discretise(Context& ctx, const SsdInputs& in, const SsdOptions& o) {
  const Shape shape{in.x.rows(), o.heads};
  DecayedScan scan{.u = in.x,
                   .b = in.b,
                   .c = in.c,
                   .scale = ctx.empty(shape),
                   .log_decay = ctx.empty(shape),
                   .decay = ctx.empty(shape),
                   .skip = in.d,
                   .heads = o.heads,
                   .head_dim = o.head_dim,
                   .groups = o.groups,
                   .state = o.state,
                   .chunk = o.chunk};
  const SsdStepDims dims{.tokens = in.x.rows(),
                         .heads = o.heads,
                         .dt_stride = in.dt_raw.row_stride(),
                         .dt_min = o.dt_min,
                         .dt_max = o.dt_max};
  const Tensor rate = ctx.empty({o.heads});
  Discretise::run(ctx, "ssd", dims, in.dt_raw.f32(), in.dt_bias.f32(), in.a_log.f32(), rate.f32(),
                  scan.scale.f32(), scan.log_decay.f32(), scan.decay.f32());
  return scan;
}

// What the backward pass needs of the forward one.
struct Saved {
  SsdInputs in;
  DecayedScan scan;
  Tensor initial, y, final_state;
  SequenceBatch batch;
  SsdOptions options;
  bool chunked;
};

// In the order of the recorded inputs: x b c dt_raw dt_bias a_log d initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const SsdInputs& in = saved.in;
  const SsdOptions& o = saved.options;
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.y.shape());
  const DecayedScanGrads scan =
      decayed_scan_vjp(ctx, saved.scan, saved.batch, saved.initial, dy, d_final, saved.chunked);
  const Tensor tail = decayed_scan_tail(ctx, saved.scan, saved.batch, saved.final_state, d_final);
  const SsdGradDims dims{.base = {.tokens = saved.batch.tokens(),
                                  .sequences = saved.batch.sequences(),
                                  .heads = o.heads,
                                  .head_dim = o.head_dim,
                                  .groups = o.groups,
                                  .state = o.state,
                                  .x_stride = in.x.row_stride(),
                                  .b_stride = in.b.row_stride(),
                                  .c_stride = in.c.row_stride(),
                                  .y_stride = o.heads * o.head_dim,
                                  .offsets = saved.batch.offsets.data()},
                         .dt_stride = in.dt_raw.row_stride(),
                         .dy_stride = dy.row_stride(),
                         .dt_min = o.dt_min,
                         .dt_max = o.dt_max};
  const Shape vector{o.heads};
  Tensor dx = ctx.empty(in.x.shape()), d_dt_raw = ctx.empty(in.dt_raw.shape());
  Tensor d_dt_bias = ctx.empty(vector), d_a_log = ctx.empty(vector);
  Tensor d_d = in.d.defined() ? ctx.empty(vector) : Tensor();
  const Tensor scratch = ctx.empty({cpu::ssd_token_scratch(dims.base)});
  TokenGrads::run(ctx, "ssd", dims, in.x.f32(), saved.y.f32(), dy.f32(), scan.du.f32(),
                  saved.scan.scale.f32(), in.dt_raw.f32(), in.dt_bias.f32(), in.a_log.f32(),
                  pointer(in.d), tail.f32(), scratch.f32(), dx.f32(), d_dt_raw.f32(),
                  d_dt_bias.f32(), d_a_log.f32(), pointer(d_d));
  return {dx, scan.db, scan.dc, d_dt_raw, d_dt_bias, d_a_log, d_d, scan.d_initial};
}

}  // namespace

SsdResult ssd(Context& ctx, const SsdInputs& inputs, const Tensor& initial,
              const SequenceBatch& batch, const SsdOptions& options) {
  check_inputs(inputs, batch, options);
  const Shape states{batch.sequences(), options.heads, options.head_dim, options.state};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "ssd: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  const DecayedScan scan = discretise(ctx, inputs, options);
  SsdResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = decayed_scan(ctx, scan, batch, state_rows(initial, batch.sequences()),
                          state_rows(result.final_state, batch.sequences()));

  if (Tape* tape = ctx.tape()) {
    auto saved =
        std::make_shared<const Saved>(Saved{inputs, scan, initial, result.y, result.final_state,
                                            batch, options, scan_vjp_is_chunked(ctx.form())});
    tape->record({inputs.x, inputs.b, inputs.c, inputs.dt_raw, inputs.dt_bias, inputs.a_log,
                  inputs.d, initial},
                 {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor ssd_in_place(Context& ctx, const SsdInputs& inputs, std::span<float* const> state,
                    const SequenceBatch& batch, const SsdOptions& options) {
  check(ctx.tape() == nullptr, "ssd: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(), "ssd: {} states, want one for each of {} sequences",
        state.size(), batch.sequences());
  const std::vector<float*> states(state.begin(), state.end());
  return decayed_scan(ctx, discretise(ctx, inputs, options), batch, states, states);
}

}  // namespace braid