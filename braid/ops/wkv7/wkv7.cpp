#include "braid/ops/wkv7/wkv7.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/wkv7/kernels.h"

namespace braid {
namespace {

using Scan = Kernel<&cpu::wkv7_scan>;
using ScanVjp = Kernel<&cpu::wkv7_scan_vjp>;
using Chunks = Kernel<&cpu::wkv7_chunks>;
using ChunksVjp = Kernel<&cpu::wkv7_chunks_vjp>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

// One pointer per sequence into (S, ...), or nulls where it is absent.
template <class T>
std::vector<T*> rows_of(const Tensor& x, int64_t sequences) {
  std::vector<T*> rows(static_cast<size_t>(sequences), nullptr);
  if (!x.defined()) return rows;
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = x.f32() + static_cast<int64_t>(s) * x.row_stride();
  }
  return rows;
}

// The dims of a batch and the tables that they point to.
struct Layout {
  SequenceBatch batch;
  std::vector<int64_t> firsts{0};  // cells before each sequence
  Wkv7Dims dims;

  Layout(const SequenceBatch& of, int64_t heads, int64_t head_dim) : batch(of) {
    dims = {.tokens = batch.tokens(),
            .sequences = batch.sequences(),
            .heads = heads,
            .head_dim = head_dim,
            .offsets = batch.offsets.data(),
            .starts = batch.starts.data(),
            .firsts = nullptr};
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      int64_t cells = 0;
      for (int64_t t = 0; t < batch.length(s); ++cells) {
        t += dims.cell_rows(s, t, batch.length(s));
      }
      firsts.push_back(firsts.back() + cells);
    }
    dims.firsts = firsts.data();
  }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  Shape states() const { return {dims.sequences, dims.heads, dims.head_dim, dims.head_dim}; }
  Shape kept_states() const { return {firsts.back(), dims.heads, dims.head_dim, dims.head_dim}; }
};

int64_t check_inputs(const Wkv7Inputs& in, int64_t heads, const SequenceBatch& batch) {
  check(in.r.rank() == 2 && heads > 0 && in.r.dim(1) % heads == 0,
        "wkv7: r has shape {}, want (T, H P) for {} heads", to_string(in.r.shape()), heads);
  const int64_t head_dim = in.r.dim(1) / heads;
  check(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kWkv7MaxHead,
        "wkv7: heads of {}, want a multiple of 8 up to {}", head_dim, kWkv7MaxHead);
  const std::pair<const char*, const Tensor&> all[] = {
      {"r", in.r}, {"log_decay", in.log_decay}, {"k", in.k}, {"v", in.v}, {"a", in.a}, {"b", in.b}};
  const Shape want{batch.tokens(), heads * head_dim};
  for (const auto& [name, x] : all) {
    if (x.shape() == want && x.dtype() == DType::kF32 && x.contiguous()) continue;
    fail(ErrorKind::kUsage, "wkv7: {} is {} {}, want contiguous f32 {}", name, to_string(x.dtype()),
         to_string(x.shape()), to_string(want));
  }
  return head_dim;
}

Wkv7Operands operands_of(const Wkv7Inputs& in) {
  return {in.r.f32(), in.log_decay.f32(), in.k.f32(), in.v.f32(), in.a.f32(), in.b.f32()};
}

// Left to itself, the forward pass is recurrent, in training too: it is not slower, and its bits do
// not depend on cuts. The vjp is chunked. README.md has the figures.
bool forward_is_chunked(Form form) { return form == Form::kChunked || form == Form::kParallel; }
bool vjp_is_chunked(Form form) { return form != Form::kRecurrent; }

Tensor scratch_of(Context& ctx, const Wkv7Dims& dims) {
  return ctx.empty({ctx.threads().size(), cpu::wkv7_scratch(dims)});
}

void forward(Context& ctx, const Wkv7Inputs& in, const Wkv7Dims& dims, const float* const* h0,
             float* const* ht, const Wkv7Kept& kept, const Tensor& y) {
  if (forward_is_chunked(ctx.form())) {
    const Tensor scratch = scratch_of(ctx, dims);
    Chunks::run(ctx, "wkv7", dims, operands_of(in), h0, ht, kept, scratch.f32(), y.f32());
  } else {
    Scan::run(ctx, "wkv7", dims, operands_of(in), h0, ht, kept, y.f32());
  }
}

struct Saved {
  Wkv7Inputs in;
  Tensor initial, final_state, reads, states;
  int64_t heads, head_dim;
  SequenceBatch batch;
  bool chunked;
};

// In the order of the recorded inputs: r log_decay k v a b initial.
Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  const Layout layout(saved.batch, saved.heads, saved.head_dim);
  const Wkv7Dims& dims = layout.dims;
  const Shape shape = saved.in.r.shape();
  Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(shape);
  if (!dy.contiguous()) dy = ctx.to_device(dy);
  Grads grads;
  for (int i = 0; i < 6; ++i) grads.push_back(ctx.empty(shape));
  grads.push_back(saved.initial.defined() ? ctx.empty(layout.states()) : Tensor());
  const Wkv7Grads out{grads[0].f32(), grads[1].f32(), grads[2].f32(),
                      grads[3].f32(), grads[4].f32(), grads[5].f32()};
  const Wkv7Kept kept{saved.reads.f32(), saved.states.f32()};
  const Tensor scratch = scratch_of(ctx, dims);
  const auto ends = rows_of<const float>(d_final, dims.sequences);
  const auto begins = rows_of<float>(grads[6], dims.sequences);
  if (saved.chunked) {
    const auto last = rows_of<const float>(saved.final_state, dims.sequences);
    ChunksVjp::run(ctx, "wkv7", dims, operands_of(saved.in), kept, dy.f32(), last.data(),
                   ends.data(), begins.data(), scratch.f32(), out);
  } else {
    ScanVjp::run(ctx, "wkv7", dims, operands_of(saved.in), kept, dy.f32(), ends.data(),
                 begins.data(), scratch.f32(), out);
  }
  return grads;
}

}  // namespace

Wkv7Result wkv7(Context& ctx, const Wkv7Inputs& inputs, const Tensor& initial, int64_t heads,
                const SequenceBatch& batch) {
  const int64_t head_dim = check_inputs(inputs, heads, batch);
  const Layout layout(batch, heads, head_dim);
  const Shape states = layout.states();
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "wkv7: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  Wkv7Result result{.y = ctx.empty(inputs.r.shape()), .final_state = ctx.empty(states)};
  Tensor reads, kept_states;
  if (ctx.tape() != nullptr) {
    reads = ctx.empty(inputs.r.shape());
    kept_states = ctx.empty(layout.kept_states());
  }
  forward(ctx, inputs, layout.dims, rows_of<const float>(initial, batch.sequences()).data(),
          rows_of<float>(result.final_state, batch.sequences()).data(),
          {pointer(reads), pointer(kept_states)}, result.y);
  if (Tape* tape = ctx.tape()) {
    const Saved saved{.in = inputs,
                      .initial = initial,
                      .final_state = result.final_state,
                      .reads = reads,
                      .states = kept_states,
                      .heads = heads,
                      .head_dim = head_dim,
                      .batch = batch,
                      .chunked = vjp_is_chunked(ctx.form())};
    tape->record({inputs.r, inputs.log_decay, inputs.k, inputs.v, inputs.a, inputs.b, initial},
                 {&result.y, &result.final_state},
                 [saved](Context& inner, const std::vector<Tensor>& dys) {
                   return vjp(inner, saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor wkv7_in_place(Context& ctx, const Wkv7Inputs& inputs, std::span<float* const> state,
                     int64_t heads, const SequenceBatch& batch) {
  check(ctx.tape() == nullptr, "wkv7: a state that is updated in place cannot be differentiated");
  const int64_t head_dim = check_inputs(inputs, heads, batch);
  check(std::ssize(state) == batch.sequences(),
        "wkv7: {} states, want one for each of {} sequences", state.size(), batch.sequences());
  const Layout layout(batch, heads, head_dim);
  const std::vector<const float*> h0(state.begin(), state.end());
  Tensor y = ctx.empty(inputs.r.shape());
  forward(ctx, inputs, layout.dims, h0.data(), state.data(), {nullptr, nullptr}, y);
  return y;
}

}  // namespace braid
