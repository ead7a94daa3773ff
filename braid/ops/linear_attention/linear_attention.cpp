#include "braid/ops/linear_attention/linear_attention.h"

#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/linear_attention/kernels.h"
#include "braid/ops/ssd/decayed_scan.h"

namespace braid {
namespace {

using Decays = Kernel<&cpu::decays>;
using DecayGrads = Kernel<&cpu::decay_grads>;
using Divide = Kernel<&cpu::divide_heads>;
using DivideVjp = Kernel<&cpu::divide_heads_vjp>;

void check_rows(const Tensor& x, int64_t tokens, int64_t width, const char* name) {
  check(x.defined() && x.shape() == Shape{tokens, width} && x.dtype() == DType::kF32,
        "linear_attention: {} is {} {}, want f32 ({}, {})", name, to_string(x.dtype()),
        to_string(x.shape()), tokens, width);
}

bool is_constant(const Tensor& log_decay) { return log_decay.defined() && log_decay.rank() == 1; }

void check_inputs(const LinearAttentionInputs& in, const SequenceBatch& batch,
                  const LinearAttentionOptions& o) {
  check(o.heads > 0 && o.key_dim > 0 && o.value_dim > 0 && o.chunk > 0,
        "linear_attention: heads {}, key_dim {}, value_dim {}, chunk {}; want them positive",
        o.heads, o.key_dim, o.value_dim, o.chunk);
  const int64_t tokens = batch.tokens();
  check_rows(in.q, tokens, o.heads * o.key_dim, "q");
  check_rows(in.k, tokens, o.heads * o.key_dim, "k");
  check_rows(in.v, tokens, o.heads * o.value_dim, "v");
  const Tensor& log = in.log_decay;
  check(!log.defined() || (log.dtype() == DType::kF32 && (log.shape() == Shape{o.heads} ||
                                                          log.shape() == Shape{tokens, o.heads})),
        "linear_attention: log_decay is {} {}, want f32 ({}, {}) or ({})", to_string(log.dtype()),
        to_string(log.shape()), tokens, o.heads, o.heads);
}

DecayedScan scan_of(Context& ctx, const LinearAttentionInputs& in,
                    const LinearAttentionOptions& o) {
  const Shape shape{in.v.rows(), o.heads};
  DecayedScan scan{.u = in.v,
                   .b = in.k,
                   .c = in.q,
                   .scale = {},
                   .log_decay = ctx.empty(shape),
                   .decay = ctx.empty(shape),
                   .skip = {},
                   .heads = o.heads,
                   .head_dim = o.value_dim,
                   .groups = o.heads,
                   .state = o.key_dim,
                   .chunk = o.chunk};
  const DecayDims dims{.tokens = in.v.rows(),
                       .heads = o.heads,
                       .stride = is_constant(in.log_decay) ? 0 : in.log_decay.row_stride()};
  Decays::run(ctx, "linear_attention", dims, in.log_decay.defined() ? in.log_decay.f32() : nullptr,
              scan.log_decay.f32(), scan.decay.f32());
  return scan;
}

// What the backward pass needs of the forward one.
struct Saved {
  LinearAttentionInputs in;
  DecayedScan scan;
  Tensor initial, y, final_state;
  SequenceBatch batch;
  bool chunked;
};

Tensor decay_gradient(Context& ctx, const Saved& saved, const Tensor& dy, const Tensor& dv,
                      const Tensor& d_final) {
  const DecayedScan& scan = saved.scan;
  const Tensor tail = decayed_scan_tail(ctx, scan, saved.batch, saved.final_state, d_final);
  const Tensor d_log = ctx.empty(scan.log_decay.shape());
  const Tensor d_constant = is_constant(saved.in.log_decay) ? ctx.empty({scan.heads}) : Tensor();
  const DecayGradDims dims{.tokens = saved.batch.tokens(),
                           .sequences = saved.batch.sequences(),
                           .heads = scan.heads,
                           .value_dim = scan.head_dim,
                           .v_stride = scan.u.row_stride(),
                           .dy_stride = dy.row_stride(),
                           .offsets = saved.batch.offsets.data()};
  DecayGrads::run(ctx, "linear_attention", dims, scan.u.f32(), saved.y.f32(), dy.f32(), dv.f32(),
                  tail.f32(), d_log.f32(), d_constant.defined() ? d_constant.f32() : nullptr);
  return d_constant.defined() ? d_constant : d_log;
}

// In the order of the recorded inputs: q k v log_decay initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.y.shape());
  const DecayedScanGrads grads =
      decayed_scan_vjp(ctx, saved.scan, saved.batch, saved.initial, dy, d_final, saved.chunked);
  const Tensor d_log = Tape::tracks(saved.in.log_decay)
                           ? decay_gradient(ctx, saved, dy, grads.du, d_final)
                           : Tensor();
  return {grads.dc, grads.db, grads.du, d_log, grads.d_initial};
}

}  // namespace

LinearAttentionResult linear_attention(Context& ctx, const LinearAttentionInputs& inputs,
                                       const Tensor& initial, const SequenceBatch& batch,
                                       const LinearAttentionOptions& options) {
  check_inputs(inputs, batch, options);
  const Shape states{batch.sequences(), options.heads, options.value_dim, options.key_dim};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "linear_attention: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  const DecayedScan scan = scan_of(ctx, inputs, options);
  LinearAttentionResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = decayed_scan(ctx, scan, batch, state_rows(initial, batch.sequences()),
                          state_rows(result.final_state, batch.sequences()));
  if (Tape* tape = ctx.tape()) {
    auto saved =
        std::make_shared<const Saved>(Saved{inputs, scan, initial, result.y, result.final_state,
                                            batch, scan_vjp_is_chunked(ctx.form())});
    tape->record({inputs.q, inputs.k, inputs.v, inputs.log_decay, initial},
                 {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor linear_attention_in_place(Context& ctx, const LinearAttentionInputs& inputs,
                                 std::span<float* const> state, const SequenceBatch& batch,
                                 const LinearAttentionOptions& options) {
  check(ctx.tape() == nullptr,
        "linear_attention: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(),
        "linear_attention: {} states, want one for each of {} sequences", state.size(),
        batch.sequences());
  const std::vector<float*> states(state.begin(), state.end());
  return decayed_scan(ctx, scan_of(ctx, inputs, options), batch, states, states);
}

Tensor divide_heads(Context& ctx, const Tensor& y, const Tensor& n, float eps) {
  check(y.rank() == 2 && n.rank() == 2 && y.rows() == n.rows() && n.dim(1) > 0 &&
            y.dim(1) % n.dim(1) == 0,
        "divide_heads: y is {} and n {}, want (T, H V) and (T, H)", to_string(y.shape()),
        to_string(n.shape()));
  const DivideHeadsDims dims{.tokens = y.rows(),
                             .heads = n.dim(1),
                             .value_dim = y.dim(1) / n.dim(1),
                             .y_stride = y.row_stride(),
                             .n_stride = n.row_stride(),
                             .dout_stride = y.dim(1),
                             .eps = eps};
  Tensor out = ctx.empty(y.shape());
  Divide::run(ctx, "divide_heads", dims, y.f32(), n.f32(), out.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({y, n}, out, [=](Context& inner, const Tensor& dout) -> Grads {
      DivideHeadsDims back = dims;
      back.dout_stride = dout.row_stride();
      const Tensor dy = inner.empty(y.shape()), dn = inner.empty(n.shape());
      DivideVjp::run(inner, "divide_heads", back, y.f32(), n.f32(), dout.f32(), dy.f32(), dn.f32());
      return {dy, dn};
    });
  }
  return out;
}

}  // namespace braid
