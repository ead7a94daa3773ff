#include "braid/ops/selective_scan/selective_scan.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/selective_scan/kernels.h"

namespace braid {
namespace {

using Table = Kernel<&cpu::selective_scan_table>;
using Scan = Kernel<&cpu::selective_scan>;
using Carry = Kernel<&cpu::selective_scan_carry>;
using Backward = Kernel<&cpu::selective_scan_vjp>;

constexpr const char* kName = "selective_scan";

using ConstPointers = std::vector<const float*>;
using Pointers = std::vector<float*>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }
int64_t stride(const Tensor& x) { return x.defined() ? x.row_stride() : 0; }

// One pointer per row of (rows, ...), or nulls where it is absent.
Pointers rows_of(const Tensor& x, int64_t count) {
  Pointers rows(static_cast<size_t>(count), nullptr);
  if (!x.defined()) return rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = x.f32() + static_cast<int64_t>(i) * x.row_stride();
  }
  return rows;
}
ConstPointers const_pointers(const Pointers& rows) { return {rows.begin(), rows.end()}; }

void check_tensor(const Tensor& x, const Shape& want, const char* name) {
  check(x.defined() && x.shape() == want && x.dtype() == DType::kF32,
        "selective_scan: {} is {} {}, want f32 {}", name, to_string(x.dtype()),
        to_string(x.shape()), to_string(want));
}

void check_inputs(const SelectiveScanInputs& in, const SequenceBatch& batch,
                  const SelectiveScanOptions& options) {
  check(options.chunk > 0, "selective_scan: chunk is {}, want it positive", options.chunk);
  check(in.a_log.defined() && in.a_log.rank() == 2 && in.a_log.count() > 0,
        "selective_scan: a_log has shape {}, want (E, N)", to_string(in.a_log.shape()));
  const int64_t tokens = batch.tokens(), channels = in.a_log.dim(0), state = in.a_log.dim(1);
  const Shape rows{tokens, channels}, vector{channels};
  const Shape mixing{in.dt_raw.defined() ? tokens : channels, state};
  check_tensor(in.a_log, {channels, state}, "a_log");
  check(in.a_log.contiguous(), "selective_scan: a_log has strided rows, want them dense");
  check_tensor(in.x, rows, "x");
  if (in.dt_raw.defined()) check_tensor(in.dt_raw, rows, "dt_raw");
  check_tensor(in.b, mixing, "b");
  check_tensor(in.c, mixing, "c");
  check(in.dt_raw.defined() || (in.b.contiguous() && in.c.contiguous()),
        "selective_scan: b or c of a system that does not vary has strided rows, want them dense");
  check_tensor(in.dt_bias, vector, "dt_bias");
  if (in.d.defined()) check_tensor(in.d, vector, "d");
  if (in.z.defined()) check_tensor(in.z, rows, "z");
}

SelectiveScanDims dims_of(const SelectiveScanInputs& in) {
  return {.tokens = in.x.rows(),
          .channels = in.a_log.dim(0),
          .state = in.a_log.dim(1),
          .x_stride = in.x.row_stride(),
          .dt_stride = stride(in.dt_raw),
          .b_stride = in.b.row_stride(),
          .c_stride = in.c.row_stride(),
          .z_stride = stride(in.z),
          .invariant = !in.dt_raw.defined()};
}

// The cells of a form: whole sequences, or the grid of chunks, multiples of the chunk length from
// each sequence's own beginning. An empty sequence has one empty cell.
struct Grid {
  std::vector<SelectiveScanCell> cells;
  std::vector<int64_t> firsts{0};
  int64_t marks = 0;

  Grid(const SequenceBatch& batch, int64_t chunk) {
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      const auto i = static_cast<size_t>(s);
      const int64_t end = batch.offsets[i + 1];
      int64_t row = batch.offsets[i];
      do {
        const int64_t first = batch.starts[i] + row - batch.offsets[i];
        const int64_t count = chunk == 0 ? end - row : std::min(end - row, chunk - first % chunk);
        cells.push_back({.sequence = s, .begin = row, .count = count, .first_mark = marks});
        marks += cells.back().marks();
        row += count;
      } while (row < end);
      firsts.push_back(std::ssize(cells));
    }
  }
  SelectiveScanCells view() const {
    return {.count = std::ssize(cells),
            .cells = cells.data(),
            .sequences = std::ssize(firsts) - 1,
            .firsts = firsts.data()};
  }
};

// What kernels read, and the tables that it points into.
struct Operands {
  SelectiveScanOperands in;
  Tensor rate, b, c;
};

Operands operands_of(Context& ctx, const SelectiveScanInputs& in, const SelectiveScanDims& dims) {
  const auto table = [&](const Tensor& x, bool rates) {
    Tensor out = ctx.empty({dims.state, dims.padded()});
    Table::run(ctx, kName, dims, rates, x.f32(), out.f32());
    return out;
  };
  Operands all;
  all.rate = table(in.a_log, true);
  all.b = dims.invariant ? table(in.b, false) : in.b;
  all.c = dims.invariant ? table(in.c, false) : in.c;
  all.in = {.x = in.x.f32(),
            .dt_raw = pointer(in.dt_raw),
            .b = all.b.f32(),
            .c = all.c.f32(),
            .dt_bias = in.dt_bias.f32(),
            .d = pointer(in.d),
            .z = pointer(in.z),
            .rate = all.rate.f32()};
  return all;
}

// What each cell adds is found from zero, and carried; then every cell has its state to start from.
Tensor chunk_states(Context& ctx, const SelectiveScanDims& dims, const Grid& grid,
                    const Operands& operands, const float* const* h0, const Tensor& scratch) {
  const SelectiveScanCells cells = grid.view();
  Tensor states = ctx.empty({cells.count, dims.state, dims.channels});
  const Tensor dt_sums = ctx.zeros({cells.count, dims.channels});
  const Pointers none(grid.cells.size(), nullptr);
  const Pointers ends = rows_of(states, cells.count);
  Scan::run(ctx, kName, dims, cells, operands.in, const_pointers(none).data(), ends.data(),
            scratch.f32(), SelectiveScanOutputs{.dt_sums = dt_sums.f32()});
  Carry::run(ctx, kName, dims, cells, operands.rate.f32(), dt_sums.f32(), h0, states.f32());
  return states;
}

bool is_chunked(Form form) { return form == Form::kChunked || form == Form::kParallel; }

// `marks`: null, or where states for the vjp go.
Tensor forward(Context& ctx, const SelectiveScanDims& dims, const Grid& grid,
               const Operands& operands, const float* const* h0, float* const* ht,
               const Tensor& marks) {
  Tensor y = ctx.empty({dims.tokens, dims.channels});
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::selective_scan_scratch(dims)});
  const SelectiveScanOutputs out{.y = y.f32(), .marks = pointer(marks)};
  const SelectiveScanCells cells = grid.view();
  if (!is_chunked(ctx.form())) {
    Scan::run(ctx, kName, dims, cells, operands.in, h0, ht, scratch.f32(), out);
    return y;
  }
  const Tensor starts = chunk_states(ctx, dims, grid, operands, h0, scratch);
  Pointers ends(grid.cells.size(), nullptr);
  for (size_t s = 0; s + 1 < grid.firsts.size(); ++s) {
    ends[static_cast<size_t>(grid.firsts[s + 1] - 1)] = ht[s];
  }
  Scan::run(ctx, kName, dims, cells, operands.in,
            const_pointers(rows_of(starts, cells.count)).data(), ends.data(), scratch.f32(), out);
  return y;
}

// What the backward pass needs of the forward one.
struct Saved {
  SelectiveScanInputs inputs;
  Operands operands;
  Grid grid;
  Tensor marks, initial;
};

// In the order of the recorded inputs: x dt_raw b c dt_bias a_log d z initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const SelectiveScanInputs& in = saved.inputs;
  const SelectiveScanDims dims = dims_of(in);
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(in.x.shape());
  const auto like = [&ctx](const Tensor& x) { return x.defined() ? ctx.empty(x.shape()) : x; };
  const Tensor dx = like(in.x), d_dt_raw = like(in.dt_raw), db = like(in.b), dc = like(in.c);
  const Tensor d_dt_bias = like(in.dt_bias), da_log = like(in.a_log), dd = like(in.d);
  const Tensor dz = like(in.z), d_initial = like(saved.initial);
  const SelectiveScanCells cells = saved.grid.view();
  const Tensor scratch = ctx.empty({cpu::selective_scan_vjp_scratch(dims, ctx.threads().size())});
  const Tensor parts = ctx.empty({cpu::selective_scan_vjp_parts(dims)});
  Backward::run(ctx, kName, dims, cells, saved.operands.in, saved.marks.f32(), dy.f32(),
                dy.row_stride(), const_pointers(rows_of(d_final, cells.sequences)).data(),
                rows_of(d_initial, cells.sequences).data(), scratch.f32(), parts.f32(),
                SelectiveScanGrads{.dx = dx.f32(),
                                   .d_dt_raw = pointer(d_dt_raw),
                                   .db = db.f32(),
                                   .dc = dc.f32(),
                                   .d_dt_bias = d_dt_bias.f32(),
                                   .da_log = da_log.f32(),
                                   .dd = pointer(dd),
                                   .dz = pointer(dz)});
  return {dx, d_dt_raw, db, dc, d_dt_bias, da_log, dd, dz, d_initial};
}

}  // namespace

SelectiveScanResult selective_scan(Context& ctx, const SelectiveScanInputs& inputs,
                                   const Tensor& initial, const SequenceBatch& batch,
                                   const SelectiveScanOptions& options) {
  check_inputs(inputs, batch, options);
  const SelectiveScanDims dims = dims_of(inputs);
  const Shape states{batch.sequences(), dims.state, dims.channels};
  if (initial.defined()) check_tensor(initial, states, "initial");
  const Grid grid(batch, is_chunked(ctx.form()) ? options.chunk : 0);
  const Operands operands = operands_of(ctx, inputs, dims);
  Tape* tape = ctx.tape();
  const Tensor marks =
      tape == nullptr ? Tensor{} : ctx.empty({grid.marks, dims.state, dims.channels});
  SelectiveScanResult result{.y = {}, .final_state = ctx.empty(states)};
  const Pointers h0 = rows_of(initial, batch.sequences());
  result.y = forward(ctx, dims, grid, operands, const_pointers(h0).data(),
                     rows_of(result.final_state, batch.sequences()).data(), marks);
  if (tape != nullptr) {
    auto saved = std::make_shared<const Saved>(Saved{inputs, operands, grid, marks, initial});
    tape->record({inputs.x, inputs.dt_raw, inputs.b, inputs.c, inputs.dt_bias, inputs.a_log,
                  inputs.d, inputs.z, initial},
                 {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, *saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor selective_scan_in_place(Context& ctx, const SelectiveScanInputs& inputs,
                               std::span<float* const> state, const SequenceBatch& batch,
                               const SelectiveScanOptions& options) {
  check(ctx.tape() == nullptr,
        "selective_scan: a state that is updated in place cannot be differentiated");
  check_inputs(inputs, batch, options);
  check(std::ssize(state) == batch.sequences(),
        "selective_scan: {} states, want one for each of {} sequences", state.size(),
        batch.sequences());
  const SelectiveScanDims dims = dims_of(inputs);
  const Grid grid(batch, is_chunked(ctx.form()) ? options.chunk : 0);
  return forward(ctx, dims, grid, operands_of(ctx, inputs, dims), state.data(), state.data(), {});
}

}  // namespace braid
