#include "braid/ops/ssd/ssd.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/ssd/kernels.h"

namespace braid {
namespace {

using Discretise = Kernel<&cpu::ssd_discretise>;
using ScanRows = Kernel<&cpu::ssd_scan_rows>;
using ScanColumns = Kernel<&cpu::ssd_scan_columns>;
using ChunkSums = Kernel<&cpu::ssd_chunk_sums>;
using ChunkPass = Kernel<&cpu::ssd_chunk_pass>;
using ChunkOutputs = Kernel<&cpu::ssd_chunk_outputs>;
using ChunkGrads = Kernel<&cpu::ssd_chunk_grads>;
using TokenGrads = Kernel<&cpu::ssd_token_grads>;
using StateDots = Kernel<&cpu::ssd_state_dots>;
using ScaleStates = Kernel<&cpu::ssd_scale_states>;

using ConstPointers = std::vector<const float*>;
using Pointers = std::vector<float*>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

// One pointer per sequence into (S, ...), or nulls where it is absent.
Pointers rows_of(const Tensor& x, int64_t sequences) {
  Pointers rows(static_cast<size_t>(sequences), nullptr);
  if (!x.defined()) return rows;
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = x.f32() + static_cast<int64_t>(s) * x.row_stride();
  }
  return rows;
}
ConstPointers const_pointers(const Pointers& rows) { return {rows.begin(), rows.end()}; }

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

SsdDims dims_of(const SsdInputs& in, const SequenceBatch& batch, const SsdOptions& o) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .heads = o.heads,
          .head_dim = o.head_dim,
          .groups = o.groups,
          .state = o.state,
          .x_stride = in.x.row_stride(),
          .b_stride = in.b.row_stride(),
          .c_stride = in.c.row_stride(),
          .y_stride = o.heads * o.head_dim,
          .offsets = batch.offsets.data()};
}

Tensor scan_scratch(Context& ctx, const SsdDims& dims) {
  return ctx.empty({ctx.threads().size(), cpu::ssd_scan_scratch(dims)});
}

struct Steps {
  Tensor dt, log_decay, decay;  // (T, H)
};

Steps discretise(Context& ctx, const SsdInputs& in, const SsdOptions& o) {
  const Shape shape{in.x.rows(), o.heads};
  Steps steps{ctx.empty(shape), ctx.empty(shape), ctx.empty(shape)};
  const SsdStepDims dims{.tokens = in.x.rows(),
                         .heads = o.heads,
                         .dt_stride = in.dt_raw.row_stride(),
                         .dt_min = o.dt_min,
                         .dt_max = o.dt_max};
  const Tensor rate = ctx.empty({o.heads});
  Discretise::run(ctx, "ssd", dims, in.dt_raw.f32(), in.dt_bias.f32(), in.a_log.f32(), rate.f32(),
                  steps.dt.f32(), steps.log_decay.f32(), steps.decay.f32());
  return steps;
}

Tensor forward_recurrent(Context& ctx, const SsdInputs& in, const SsdDims& dims, const Steps& steps,
                         const float* const* h0, float* const* ht) {
  Tensor y = ctx.empty({dims.tokens, dims.heads * dims.head_dim});
  const Tensor scratch = scan_scratch(ctx, dims);
  ScanRows::run(ctx, "ssd", dims, SsdScan{.scale = steps.dt.f32()}, in.x.f32(), in.b.f32(),
                in.c.f32(), steps.decay.f32(), pointer(in.d), h0, ht, scratch.f32(), y.f32());
  return y;
}

// The grid of chunks: multiples of the chunk length from each sequence's own beginning.
struct ChunkGrid {
  std::vector<SsdChunk> cells;
  std::vector<int64_t> firsts{0};

  ChunkGrid(const SequenceBatch& batch, int64_t chunk) {
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      const auto i = static_cast<size_t>(s);
      int64_t row = batch.offsets[i], count = chunk - batch.starts[i] % chunk;
      for (; row < batch.offsets[i + 1]; row += count, count = chunk) {
        count = std::min(count, batch.offsets[i + 1] - row);
        cells.push_back({.sequence = s, .begin = row, .count = count});
      }
      firsts.push_back(std::ssize(cells));
    }
  }
  SsdChunkDims dims(const SsdDims& base, int64_t chunk) const {
    return {.base = base,
            .chunk = chunk,
            .chunks = std::ssize(cells),
            .cells = cells.data(),
            .firsts = firsts.data()};
  }
};

// States at the starts of all chunks (chunks, H, P, N), or their adjoints at the ends. dims.x and
// dims.b are the strides of x and b, whatever stands in their places.
Tensor chunk_states(Context& ctx, const SsdChunkDims& dims, bool reverse, const float* x,
                    const Steps& steps, const float* b, const Tensor& scratch,
                    const float* const* h0, float* const* ht) {
  const SsdDims& base = dims.base;
  Tensor sums = ctx.empty({dims.chunks, base.heads, base.head_dim, base.state});
  const Tensor totals = ctx.empty({dims.chunks, base.heads});
  ChunkSums::run(ctx, "ssd", dims, reverse, x, steps.dt.f32(), b, steps.log_decay.f32(),
                 scratch.f32(), sums.f32(), totals.f32());
  ChunkPass::run(ctx, "ssd", dims, reverse, totals.f32(), h0, ht, sums.f32());
  return sums;
}

Tensor forward_chunked(Context& ctx, const SsdInputs& in, const SsdChunkDims& dims,
                       const Steps& steps, const float* const* h0, float* const* ht) {
  const SsdDims& base = dims.base;
  Tensor y = ctx.empty({base.tokens, base.heads * base.head_dim});
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ssd_chunk_scratch(dims)});
  const Tensor starts =
      chunk_states(ctx, dims, false, in.x.f32(), steps, in.b.f32(), scratch, h0, ht);
  ChunkOutputs::run(ctx, "ssd", dims, in.x.f32(), steps.dt.f32(), in.b.f32(), in.c.f32(),
                    steps.log_decay.f32(), pointer(in.d), starts.f32(), scratch.f32(), y.f32());
  return y;
}

// Left to itself, the forward pass is recurrent, in training too: it is not slower here, and its
// bits do not depend on cuts. The vjp is chunked. README.md has the figures.
bool forward_is_chunked(Form form) { return form == Form::kChunked || form == Form::kParallel; }
bool vjp_is_chunked(Form form) { return form != Form::kRecurrent; }

Tensor forward(Context& ctx, const SsdInputs& in, const SequenceBatch& batch, const SsdOptions& o,
               const Steps& steps, const float* const* h0, float* const* ht) {
  const SsdDims dims = dims_of(in, batch, o);
  if (!forward_is_chunked(ctx.form())) return forward_recurrent(ctx, in, dims, steps, h0, ht);
  const ChunkGrid grid(batch, o.chunk);
  return forward_chunked(ctx, in, grid.dims(dims, o.chunk), steps, h0, ht);
}

// What the backward pass needs of the forward one.
struct Saved {
  SsdInputs in;
  Tensor initial, y, final_state;
  Steps steps;
  SequenceBatch batch;
  SsdOptions options;
  bool chunked;
};

// Gradients with respect to the scan's own operands.
struct ScanGrads {
  Tensor du, db, dc, d_initial;
};

ScanGrads vjp_recurrent(Context& ctx, const Saved& saved, const SsdDims& dims, const Tensor& dy,
                        const Tensor& d_final) {
  const SsdInputs& in = saved.in;
  const int64_t sequences = dims.sequences;
  ScanGrads grads{ctx.empty(saved.y.shape()), ctx.empty(in.b.shape()), ctx.empty(in.c.shape()), {}};
  if (saved.initial.defined()) grads.d_initial = ctx.empty(saved.initial.shape());
  const Tensor scratch = scan_scratch(ctx, dims);
  const ConstPointers h0 = const_pointers(rows_of(saved.initial, sequences));
  const ConstPointers g0 = const_pointers(rows_of(d_final, sequences));
  const Pointers gt = rows_of(grads.d_initial, sequences);
  const float* decay = saved.steps.decay.f32();

  SsdDims adjoint = dims;  // dy in the place of x, C and B exchanged
  adjoint.x_stride = dy.row_stride();
  std::swap(adjoint.b_stride, adjoint.c_stride);
  ScanRows::run(ctx, "ssd", adjoint, SsdScan{.reverse = true}, dy.f32(), in.c.f32(), in.b.f32(),
                decay, nullptr, g0.data(), gt.data(), scratch.f32(), grads.du.f32());
  if (grads.d_initial.defined()) ScaleStates::run(ctx, "ssd", dims, decay, gt.data());

  const SsdColumns for_c{.k_scale = saved.steps.dt.f32(),
                         .k_stride = dims.x_stride,
                         .q_stride = dy.row_stride(),
                         .b_stride = dims.b_stride};
  ScanColumns::run(ctx, "ssd", dims, for_c, in.x.f32(), dy.f32(), in.b.f32(), decay, h0.data(),
                   scratch.f32(), grads.dc.f32());
  const SsdColumns for_b{.reverse = true,
                         .q_scale = saved.steps.dt.f32(),
                         .k_stride = dy.row_stride(),
                         .q_stride = dims.x_stride,
                         .b_stride = dims.c_stride};
  ScanColumns::run(ctx, "ssd", dims, for_b, dy.f32(), in.x.f32(), in.c.f32(), decay, g0.data(),
                   scratch.f32(), grads.db.f32());
  return grads;
}

ScanGrads vjp_chunked(Context& ctx, const Saved& saved, const SsdDims& base, const Tensor& dy,
                      const Tensor& d_final) {
  const SsdInputs& in = saved.in;
  ScanGrads grads{ctx.empty(saved.y.shape()), ctx.empty(in.b.shape()), ctx.empty(in.c.shape()), {}};
  if (saved.initial.defined()) grads.d_initial = ctx.empty(saved.initial.shape());
  const ChunkGrid grid(saved.batch, saved.options.chunk);
  const SsdChunkDims dims = grid.dims(base, saved.options.chunk);
  SsdChunkDims adjoint = dims;  // dy in the place of x, C in that of B
  adjoint.base.x_stride = dy.row_stride();
  adjoint.base.b_stride = base.c_stride;
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ssd_chunk_scratch(dims)});
  const Pointers none(static_cast<size_t>(base.sequences), nullptr);
  // Computed again rather than kept: one product of the nine, against chunks x state of memory.
  const Tensor starts =
      chunk_states(ctx, dims, false, in.x.f32(), saved.steps, in.b.f32(), scratch,
                   const_pointers(rows_of(saved.initial, base.sequences)).data(), none.data());
  const Tensor ends = chunk_states(ctx, adjoint, true, dy.f32(), saved.steps, in.c.f32(), scratch,
                                   const_pointers(rows_of(d_final, base.sequences)).data(),
                                   rows_of(grads.d_initial, base.sequences).data());
  ChunkGrads::run(ctx, "ssd", dims, in.x.f32(), saved.steps.dt.f32(), in.b.f32(), in.c.f32(),
                  saved.steps.log_decay.f32(), dy.f32(), dy.row_stride(), starts.f32(), ends.f32(),
                  scratch.f32(), grads.du.f32(), grads.db.f32(), grads.dc.f32());
  return grads;
}

// In the order of the recorded inputs: x b c dt_raw dt_bias a_log d initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const SsdInputs& in = saved.in;
  const SsdDims dims = dims_of(in, saved.batch, saved.options);
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.y.shape());
  const ScanGrads scan = saved.chunked ? vjp_chunked(ctx, saved, dims, dy, d_final)
                                       : vjp_recurrent(ctx, saved, dims, dy, d_final);

  const Tensor tail = ctx.empty({dims.sequences, dims.heads});
  StateDots::run(ctx, "ssd", dims, const_pointers(rows_of(d_final, dims.sequences)).data(),
                 const_pointers(rows_of(saved.final_state, dims.sequences)).data(), tail.f32());
  const Shape vector{dims.heads};
  Tensor dx = ctx.empty(in.x.shape()), d_dt_raw = ctx.empty(in.dt_raw.shape());
  Tensor d_dt_bias = ctx.empty(vector), d_a_log = ctx.empty(vector);
  Tensor d_d = in.d.defined() ? ctx.empty(vector) : Tensor();
  const Tensor scratch = ctx.empty({cpu::ssd_token_scratch(dims)});
  const SsdGradDims grad_dims{.base = dims,
                              .dt_stride = in.dt_raw.row_stride(),
                              .dy_stride = dy.row_stride(),
                              .dt_min = saved.options.dt_min,
                              .dt_max = saved.options.dt_max};
  TokenGrads::run(ctx, "ssd", grad_dims, in.x.f32(), saved.y.f32(), dy.f32(), scan.du.f32(),
                  saved.steps.dt.f32(), in.dt_raw.f32(), in.dt_bias.f32(), in.a_log.f32(),
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
  const Steps steps = discretise(ctx, inputs, options);
  SsdResult result{.y = {}, .final_state = ctx.empty(states)};
  const ConstPointers h0 = const_pointers(rows_of(initial, batch.sequences()));
  const Pointers ht = rows_of(result.final_state, batch.sequences());
  result.y = forward(ctx, inputs, batch, options, steps, h0.data(), ht.data());

  if (Tape* tape = ctx.tape()) {
    auto saved =
        std::make_shared<const Saved>(Saved{inputs, initial, result.y, result.final_state, steps,
                                            batch, options, vjp_is_chunked(ctx.form())});
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
  const Steps steps = discretise(ctx, inputs, options);
  return forward(ctx, inputs, batch, options, steps, state.data(), state.data());
}

}  // namespace braid
