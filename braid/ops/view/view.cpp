#include "braid/ops/view/view.h"

#include <numeric>

#include "braid/core/kernel.h"
#include "braid/ops/view/kernels.h"

namespace braid {

using CopyRows = Kernel<&cpu::copy_rows>;
using GatherRows = Kernel<&cpu::gather_rows>;
using ScatterAddRows = Kernel<&cpu::scatter_add_rows>;

std::vector<Tensor> split_columns(Context& ctx, const Tensor& x, std::span<const int64_t> widths) {
  check(x.rank() == 2, "split_columns: x has shape {}, want (N, D)", to_string(x.shape()));
  const int64_t total = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  check(total == x.dim(1), "split_columns: widths add up to {}, want {}", total, x.dim(1));
  std::vector<Tensor> slices;
  int64_t begin = 0;
  for (const int64_t width : widths) {
    slices.push_back(x.slice_columns(begin, begin + width));
    begin += width;
  }
  if (Tape* tape = ctx.tape()) {
    std::vector<Tensor*> outputs;
    for (Tensor& slice : slices) outputs.push_back(&slice);
    tape->record({x}, outputs,
                 [shape = x.shape(), widths = std::vector<int64_t>(widths.begin(), widths.end())](
                     Context& inner, const std::vector<Tensor>& dys) -> Grads {
                   Tensor dx = inner.empty(shape);
                   int64_t column = 0;
                   for (size_t i = 0; i < widths.size(); ++i) {
                     const Tensor& dy = dys[i];
                     const CopyRowsDims dims{.rows = shape[0],
                                             .width = widths[i],
                                             .x_stride = dy.defined() ? dy.row_stride() : 0,
                                             .y_stride = shape[1]};
                     CopyRows::run(inner, "split_columns", dims, dy.defined() ? dy.f32() : nullptr,
                                   dx.f32() + column);
                     column += widths[i];
                   }
                   return {dx};
                 });
  }
  return slices;
}

Tensor concat_columns(Context& ctx, std::span<const Tensor> parts) {
  check(!parts.empty(), "concat_columns: no parts, want one at least");
  int64_t total = 0;
  for (const Tensor& part : parts) {
    check(part.rank() == 2 && part.rows() == parts[0].rows(),
          "concat_columns: a part has shape {}, want ({}, D)", to_string(part.shape()),
          parts[0].rows());
    total += part.dim(1);
  }
  Tensor y = ctx.empty({parts[0].rows(), total});
  int64_t column = 0;
  for (const Tensor& part : parts) {
    const CopyRowsDims dims{.rows = part.rows(),
                            .width = part.dim(1),
                            .x_stride = part.row_stride(),
                            .y_stride = total};
    CopyRows::run(ctx, "concat_columns", dims, part.f32(), y.f32() + column);
    column += part.dim(1);
  }
  if (Tape* tape = ctx.tape()) {
    std::vector<int64_t> ends;
    for (const Tensor& part : parts) ends.push_back((ends.empty() ? 0 : ends.back()) + part.dim(1));
    tape->record({parts.begin(), parts.end()}, y, [ends](Context&, const Tensor& dy) -> Grads {
      Grads grads;
      for (size_t i = 0; i < ends.size(); ++i) {
        grads.push_back(dy.slice_columns(i == 0 ? 0 : ends[i - 1], ends[i]));
      }
      return grads;
    });
  }
  return y;
}

Tensor reshape(Context& ctx, const Tensor& x, Shape shape) {
  Tensor y = x.reshape(shape);
  y.set_grad_id(0);
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [from = x.shape()](Context&, const Tensor& dy) -> Grads {
      Tensor dx = dy.reshape(from);
      dx.set_grad_id(0);
      return {dx};
    });
  }
  return y;
}

Tensor gather_rows(Context& ctx, const Tensor& x, std::span<const int64_t> rows) {
  check(x.rank() == 2, "gather_rows: x has shape {}, want (N, D)", to_string(x.shape()));
  for (const int64_t row : rows) {
    check(0 <= row && row < x.rows(), "gather_rows: row {}, want 0..{}", row, x.rows() - 1);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t width = x.dim(1);
  const Tensor index =
      ctx.to_device(host_tensor(std::vector<int64_t>(rows.begin(), rows.end()), {count}));
  Tensor y = ctx.empty({count, width});
  const CopyRowsDims dims{
      .rows = count, .width = width, .x_stride = x.row_stride(), .y_stride = width};
  GatherRows::run(ctx, "gather_rows", dims, index.data<int64_t>(), x.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [index, shape = x.shape()](Context& inner, const Tensor& dy) -> Grads {
      Tensor dx = inner.zeros(shape);
      const CopyRowsDims back{
          .rows = dy.rows(), .width = shape[1], .x_stride = dy.row_stride(), .y_stride = shape[1]};
      ScatterAddRows::run(inner, "gather_rows", back, index.data<int64_t>(), dy.f32(), dx.f32());
      return {dx};
    });
  }
  return y;
}

}  // namespace braid
