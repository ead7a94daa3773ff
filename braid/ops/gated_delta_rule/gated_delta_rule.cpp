#include "braid/ops/gated_delta_rule/gated_delta_rule.h"

#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/ssd/chunk_grid.h"
#include "braid/ops/ssd/decayed_scan.h"

namespace braid {
namespace {

using Scan = Kernel<&cpu::gated_delta_scan>;
using Chunks = Kernel<&cpu::gated_delta_chunks>;
using ChunksVjp = Kernel<&cpu::gated_delta_chunks_vjp>;

using Pointers = std::vector<float*>;
using ConstPointers = std::vector<const float*>;

ConstPointers const_rows(const Pointers& rows) { return {rows.begin(), rows.end()}; }

void check_rows(const Tensor& x, const Shape& want, bool dense, const char* name) {
  check(x.defined() && x.shape() == want && x.dtype() == DType::kF32 && (!dense || x.contiguous()),
        "gated_delta_rule: {} is {} {}, want {}f32 {}", name, to_string(x.dtype()),
        to_string(x.shape()), dense ? "a dense " : "", to_string(want));
}

void check_inputs(const GatedDeltaInputs& in, const SequenceBatch& batch,
                  const GatedDeltaOptions& o) {
  check(o.heads > 0 && o.key_heads > 0 && o.key_dim > 0 && o.value_dim > 0 && o.chunk > 0 &&
            o.heads % o.key_heads == 0,
        "gated_delta_rule: heads {}, key_heads {}, key_dim {}, value_dim {}, chunk {}; want them "
        "positive and heads a multiple of key_heads",
        o.heads, o.key_heads, o.key_dim, o.value_dim, o.chunk);
  const int64_t tokens = batch.tokens();
  check_rows(in.q, {tokens, o.key_heads * o.key_dim}, false, "q");
  check_rows(in.k, {tokens, o.key_heads * o.key_dim}, false, "k");
  check_rows(in.v, {tokens, o.heads * o.value_dim}, false, "v");
  check_rows(in.log_decay, {tokens, o.heads}, true, "log_decay");
  check_rows(in.beta, {tokens, o.heads}, true, "beta");
}

GatedDeltaDims dims_of(const GatedDeltaInputs& in, const SequenceBatch& batch,
                       const GatedDeltaOptions& o) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .heads = o.heads,
          .key_heads = o.key_heads,
          .key_dim = o.key_dim,
          .value_dim = o.value_dim,
          .q_stride = in.q.row_stride(),
          .k_stride = in.k.row_stride(),
          .v_stride = in.v.row_stride(),
          .offsets = batch.offsets.data()};
}

GatedDeltaChunkDims chunk_dims(const ChunkGrid& grid, const GatedDeltaDims& base, int64_t chunk) {
  return {.base = base,
          .chunk = chunk,
          .chunks = std::ssize(grid.cells),
          .cells = grid.cells.data(),
          .firsts = grid.firsts.data()};
}

GatedDeltaOperands operands_of(const GatedDeltaInputs& in) {
  return {in.q.f32(), in.k.f32(), in.v.f32(), in.log_decay.f32(), in.beta.f32()};
}

Tensor chunk_scratch(Context& ctx, const GatedDeltaChunkDims& dims) {
  return ctx.empty({ctx.threads().size(), cpu::gated_delta_chunk_scratch(dims)});
}

Tensor forward(Context& ctx, const GatedDeltaInputs& in, const SequenceBatch& batch,
               const GatedDeltaOptions& o, const Pointers& h0, const Pointers& ht) {
  const GatedDeltaDims dims = dims_of(in, batch, o);
  Tensor y = ctx.empty(in.v.shape());
  if (ctx.form() == Form::kChunked || ctx.form() == Form::kParallel) {
    const ChunkGrid grid(batch, o.chunk);
    const GatedDeltaChunkDims chunks = chunk_dims(grid, dims, o.chunk);
    Chunks::run(ctx, "gated_delta_rule", chunks, operands_of(in), const_rows(h0).data(), ht.data(),
                chunk_scratch(ctx, chunks).f32(),
                GatedDeltaOutputs{.y = y.f32(), .e = nullptr, .starts = nullptr});
    return y;
  }
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::gated_delta_scan_scratch(dims)});
  Scan::run(ctx, "gated_delta_rule", dims, operands_of(in), const_rows(h0).data(), ht.data(),
            scratch.f32(), y.f32());
  return y;
}

struct Saved {
  GatedDeltaInputs in;
  Tensor initial;
  SequenceBatch batch;
  GatedDeltaOptions options;
};

// In the order of the recorded inputs: q k v log_decay beta initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const GatedDeltaInputs& in = saved.in;
  const GatedDeltaOptions& o = saved.options;
  const int64_t sequences = saved.batch.sequences();
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(in.v.shape());
  const ChunkGrid grid(saved.batch, o.chunk);
  const GatedDeltaChunkDims dims = chunk_dims(grid, dims_of(in, saved.batch, o), o.chunk);
  const Tensor scratch = chunk_scratch(ctx, dims);
  // Made here rather than kept: chunks x state of memory would lie idle until the backward pass.
  const Tensor starts = ctx.empty({dims.chunks, o.heads, o.key_dim, o.value_dim});
  const Tensor e = ctx.empty(in.v.shape());
  Chunks::run(ctx, "gated_delta_rule", dims, operands_of(in),
              const_rows(state_rows(saved.initial, sequences)).data(),
              state_rows(Tensor(), sequences).data(), scratch.f32(),
              GatedDeltaOutputs{.y = nullptr, .e = e.f32(), .starts = starts.f32()});

  const Tensor d_initial = saved.initial.defined() ? ctx.empty(saved.initial.shape()) : Tensor();
  const Tensor dq = ctx.empty(in.q.shape()), dk = ctx.empty(in.k.shape());
  const Tensor dv = ctx.empty(in.v.shape());
  const Tensor d_log_decay = ctx.empty(in.beta.shape()), d_beta = ctx.empty(in.beta.shape());
  ChunksVjp::run(ctx, "gated_delta_rule", dims, operands_of(in), starts.f32(), e.f32(), dy.f32(),
                 dy.row_stride(), const_rows(state_rows(d_final, sequences)).data(),
                 state_rows(d_initial, sequences).data(), scratch.f32(),
                 GatedDeltaGrads{.dq = dq.f32(),
                                 .dk = dk.f32(),
                                 .dv = dv.f32(),
                                 .d_log_decay = d_log_decay.f32(),
                                 .d_beta = d_beta.f32()});
  return {dq, dk, dv, d_log_decay, d_beta, d_initial};
}

}  // namespace

GatedDeltaResult gated_delta_rule(Context& ctx, const GatedDeltaInputs& inputs,
                                  const Tensor& initial, const SequenceBatch& batch,
                                  const GatedDeltaOptions& options) {
  check_inputs(inputs, batch, options);
  const Shape states{batch.sequences(), options.heads, options.key_dim, options.value_dim};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "gated_delta_rule: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  GatedDeltaResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = forward(ctx, inputs, batch, options, state_rows(initial, batch.sequences()),
                     state_rows(result.final_state, batch.sequences()));
  if (Tape* tape = ctx.tape()) {
    auto saved = std::make_shared<const Saved>(Saved{inputs, initial, batch, options});
    tape->record({inputs.q, inputs.k, inputs.v, inputs.log_decay, inputs.beta, initial},
                 {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor gated_delta_rule_in_place(Context& ctx, const GatedDeltaInputs& inputs,
                                 std::span<float* const> state, const SequenceBatch& batch,
                                 const GatedDeltaOptions& options) {
  check(ctx.tape() == nullptr,
        "gated_delta_rule: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(),
        "gated_delta_rule: {} states, want one for each of {} sequences", state.size(),
        batch.sequences());
  const Pointers states(state.begin(), state.end());
  return forward(ctx, inputs, batch, options, states, states);
}

}  // namespace braid
