#include "braid/ops/short_conv/short_conv.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/core/table.h"
#include "braid/ops/short_conv/kernels.h"

namespace braid {
namespace {

using ForwardKernel = Kernel<&cpu::short_conv, &cuda::short_conv>;
using VjpKernel = Kernel<&cpu::short_conv_vjp, &cuda::short_conv_vjp>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

std::vector<float*> rows_of(const Tensor& x, int64_t sequences) {
  std::vector<float*> rows(static_cast<size_t>(sequences), nullptr);
  if (!x.defined()) return rows;
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = x.f32() + static_cast<int64_t>(s) * x.row_stride();
  }
  return rows;
}
std::vector<const float*> const_rows_of(const Tensor& x, int64_t sequences) {
  const std::vector<float*> rows = rows_of(x, sequences);
  return {rows.begin(), rows.end()};
}

ShortConvDims check_inputs(const Tensor& x, const Tensor& w, const Tensor& bias,
                           const SequenceBatch& batch, const ShortConvOptions& options) {
  check(x.rank() == 2 && x.rows() == batch.tokens() && x.dtype() == DType::kF32,
        "short_conv: x is {} {}, want f32 ({}, C)", to_string(x.dtype()), to_string(x.shape()),
        batch.tokens());
  const int64_t channels = x.dim(1);
  check(w.rank() == 2 && w.dim(0) == channels && w.contiguous() && w.dtype() == DType::kF32,
        "short_conv: w is {} {}, want contiguous f32 ({}, W)", to_string(w.dtype()),
        to_string(w.shape()), channels);
  check(2 <= w.dim(1) && w.dim(1) <= kShortConvMaxWidth, "short_conv: width {}, want 2..{}",
        w.dim(1), kShortConvMaxWidth);
  check(!bias.defined() || (bias.shape() == Shape{channels} && bias.dtype() == DType::kF32),
        "short_conv: bias is {} {}, want f32 ({})", to_string(bias.dtype()),
        to_string(bias.shape()), channels);
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .channels = channels,
          .width = w.dim(1),
          .x_stride = x.row_stride(),
          .y_stride = channels,
          .silu = options.silu};
}

void forward(Context& ctx, ShortConvDims dims, const SequenceBatch& batch, const Tensor& x,
             const Tensor& w, const Tensor& bias, std::span<const float* const> h0,
             std::span<float* const> ht, const Tensor& y) {
  const Table<int64_t> offsets(ctx, batch.offsets);
  dims.offsets = offsets.data();
  ForwardKernel::run(ctx, "short_conv", dims, x.f32(), w.f32(), pointer(bias),
                     Table<const float*>(ctx, h0).data(), Table<float*>(ctx, ht).data(), y.f32());
}

struct Saved {
  Tensor x, w, bias, initial;
  SequenceBatch batch;
  ShortConvOptions options;
};

Grads vjp(Context& ctx, const Saved& saved, const Tensor& dy_or_none, const Tensor& d_final) {
  ShortConvVjpDims dims{.base =
                            check_inputs(saved.x, saved.w, saved.bias, saved.batch, saved.options)};
  const int64_t sequences = dims.base.sequences;
  const Tensor dy = dy_or_none.defined() ? dy_or_none : ctx.zeros(saved.x.shape());
  Tensor dx = ctx.empty(saved.x.shape()), dw = ctx.empty(saved.w.shape());
  Tensor d_bias = saved.bias.defined() ? ctx.empty(saved.bias.shape()) : Tensor();
  Tensor d_initial = saved.initial.defined() ? ctx.empty(saved.initial.shape()) : Tensor();
  const Table<int64_t> offsets(ctx, saved.batch.offsets);
  dims.base.offsets = offsets.data();
  dims.dy_stride = dy.row_stride();
  Tensor partial;
  if (ctx.device().kind == DeviceKind::kCuda) {
    partial = ctx.empty({dims.tiles(), dims.base.width + 1, dims.base.channels});
    dims.partial = partial.f32();
  }
  const auto h0 = const_rows_of(saved.initial, sequences);
  const auto g_final = const_rows_of(d_final, sequences);
  const auto g_initial = rows_of(d_initial, sequences);
  VjpKernel::run(ctx, "short_conv", dims, saved.x.f32(), saved.w.f32(), pointer(saved.bias),
                 dy.f32(), Table<const float*>(ctx, h0).data(),
                 Table<const float*>(ctx, g_final).data(), Table<float*>(ctx, g_initial).data(),
                 dx.f32(), dw.f32(), pointer(d_bias));
  return {dx, dw, d_bias, d_initial};
}

}  // namespace

ShortConvResult short_conv(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias,
                           const Tensor& initial, const SequenceBatch& batch,
                           const ShortConvOptions& options) {
  const ShortConvDims dims = check_inputs(x, w, bias, batch, options);
  const Shape states{dims.sequences, dims.width - 1, dims.channels};
  check(!initial.defined() || (initial.shape() == states && initial.dtype() == DType::kF32),
        "short_conv: initial is {} {}, want f32 {}", to_string(initial.dtype()),
        to_string(initial.shape()), to_string(states));
  ShortConvResult result{.y = ctx.empty(x.shape()), .final_state = ctx.empty(states)};
  forward(ctx, dims, batch, x, w, bias, const_rows_of(initial, dims.sequences),
          rows_of(result.final_state, dims.sequences), result.y);
  if (Tape* tape = ctx.tape()) {
    tape->record({x, w, bias, initial}, {&result.y, &result.final_state},
                 [saved = Saved{x, w, bias, initial, batch, options}](
                     Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   return vjp(inner, saved, dys[0], dys[1]);
                 });
  }
  return result;
}

Tensor short_conv_in_place(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias,
                           std::span<float* const> state, const SequenceBatch& batch,
                           const ShortConvOptions& options) {
  check(ctx.tape() == nullptr,
        "short_conv: a state that is updated in place cannot be differentiated");
  const ShortConvDims dims = check_inputs(x, w, bias, batch, options);
  check(std::ssize(state) == dims.sequences,
        "short_conv: {} states, want one for each of {} sequences", state.size(), dims.sequences);
  Tensor y = ctx.empty(x.shape());
  forward(ctx, dims, batch, x, w, bias, {state.data(), state.size()}, state, y);
  return y;
}

}  // namespace braid
