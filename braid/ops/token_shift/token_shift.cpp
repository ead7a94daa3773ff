#include "braid/ops/token_shift/token_shift.h"

#include "braid/core/kernel.h"
#include "braid/ops/token_shift/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::token_shift>;
using Backward = Kernel<&cpu::token_shift_vjp>;

// One pointer per sequence into (S, D), or nulls where it is absent.
template <class T>
std::vector<T*> rows_of(const Tensor& x, int64_t sequences) {
  std::vector<T*> rows(static_cast<size_t>(sequences), nullptr);
  if (!x.defined()) return rows;
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = x.f32() + static_cast<int64_t>(s) * x.row_stride();
  }
  return rows;
}

TokenShiftInputs pointers(std::span<const Tensor> tensors) {
  TokenShiftInputs out{};
  for (size_t m = 0; m < tensors.size(); ++m) out[m] = tensors[m].f32();
  return out;
}

TokenShiftDims check_inputs(const Tensor& x, std::span<const Tensor> mu,
                            const SequenceBatch& batch) {
  check(x.rank() == 2 && x.rows() == batch.tokens() && x.dtype() == DType::kF32,
        "token_shift: x is {} {}, want f32 ({}, D)", to_string(x.dtype()), to_string(x.shape()),
        batch.tokens());
  check(!mu.empty() && std::ssize(mu) <= kTokenShiftMaxOutputs,
        "token_shift: {} outputs, want 1 to {}", mu.size(), kTokenShiftMaxOutputs);
  for (const Tensor& one : mu) {
    check(one.shape() == Shape{x.dim(1)} && one.dtype() == DType::kF32,
          "token_shift: mu is {} {}, want f32 ({})", to_string(one.dtype()), to_string(one.shape()),
          x.dim(1));
  }
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .width = x.dim(1),
          .outputs = std::ssize(mu),
          .x_stride = x.row_stride(),
          .offsets = nullptr};
}

std::vector<Tensor> forward(Context& ctx, TokenShiftDims dims, const SequenceBatch& batch,
                            const Tensor& x, std::span<const Tensor> mu, const float* const* h0,
                            float* const* ht) {
  dims.offsets = batch.offsets.data();
  std::vector<Tensor> y;
  TokenShiftOutputs out{};
  for (size_t m = 0; m < mu.size(); ++m) {
    y.push_back(ctx.empty(x.shape()));
    out[m] = y[m].f32();
  }
  Forward::run(ctx, "token_shift", dims, x.f32(), pointers(mu), h0, ht, out);
  return y;
}

struct Saved {
  Tensor x, initial;
  std::vector<Tensor> mu;
  SequenceBatch batch;
};

// `dys` are those of y, then that of final_state. The result is that of x, mu..., initial.
Grads vjp(Context& ctx, const Saved& saved, const std::vector<Tensor>& dys) {
  TokenShiftDims dims = check_inputs(saved.x, saved.mu, saved.batch);
  dims.offsets = saved.batch.offsets.data();
  std::vector<Tensor> dy;
  for (size_t m = 0; m < saved.mu.size(); ++m) {
    dy.push_back(!dys[m].defined()     ? ctx.zeros(saved.x.shape())
                 : dys[m].contiguous() ? dys[m]
                                       : ctx.to_device(dys[m]));
  }
  const Tensor dx = ctx.empty(saved.x.shape()), d_mu = ctx.empty({dims.outputs, dims.width});
  const Tensor partial = ctx.empty({dims.blocks(), dims.outputs, dims.width});
  const Tensor d_initial = saved.initial.defined() ? ctx.empty(saved.initial.shape()) : Tensor();
  Backward::run(ctx, "token_shift", dims, saved.x.f32(), pointers(saved.mu),
                rows_of<const float>(saved.initial, dims.sequences).data(), pointers(dy),
                rows_of<const float>(dys.back(), dims.sequences).data(), partial.f32(), dx.f32(),
                d_mu.f32(), rows_of<float>(d_initial, dims.sequences).data());
  Grads grads{dx};
  for (int64_t m = 0; m < dims.outputs; ++m) {
    grads.push_back(d_mu.slice_rows(m, m + 1).reshape({dims.width}));
  }
  grads.push_back(d_initial);
  return grads;
}

}  // namespace

TokenShiftResult token_shift(Context& ctx, const Tensor& x, std::span<const Tensor> mu,
                             const Tensor& initial, const SequenceBatch& batch) {
  const TokenShiftDims dims = check_inputs(x, mu, batch);
  const Shape states{dims.sequences, dims.width};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "token_shift: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  TokenShiftResult result{.y = {}, .final_state = ctx.empty(states)};
  result.y = forward(ctx, dims, batch, x, mu, rows_of<const float>(initial, dims.sequences).data(),
                     rows_of<float>(result.final_state, dims.sequences).data());
  if (Tape* tape = ctx.tape()) {
    std::vector<Tensor> inputs{x};
    inputs.insert(inputs.end(), mu.begin(), mu.end());
    inputs.push_back(initial);
    std::vector<Tensor*> outputs;
    for (Tensor& one : result.y) outputs.push_back(&one);
    outputs.push_back(&result.final_state);
    tape->record(
        std::move(inputs), std::move(outputs),
        [saved = Saved{x, initial, {mu.begin(), mu.end()}, batch}](
            Context& inner, const std::vector<Tensor>& dys) { return vjp(inner, saved, dys); });
  }
  return result;
}

std::vector<Tensor> token_shift_in_place(Context& ctx, const Tensor& x, std::span<const Tensor> mu,
                                         std::span<float* const> state,
                                         const SequenceBatch& batch) {
  check(ctx.tape() == nullptr,
        "token_shift: a state that is updated in place cannot be differentiated");
  const TokenShiftDims dims = check_inputs(x, mu, batch);
  check(std::ssize(state) == dims.sequences,
        "token_shift: {} states, want one for each of {} sequences", state.size(), dims.sequences);
  const std::vector<const float*> h0(state.begin(), state.end());
  return forward(ctx, dims, batch, x, mu, h0.data(), state.data());
}

}  // namespace braid
