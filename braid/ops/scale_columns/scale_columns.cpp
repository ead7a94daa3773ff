#include "braid/ops/scale_columns/scale_columns.h"

#include <algorithm>

#include "braid/core/kernel.h"
#include "braid/ops/scale_columns/kernels.h"

namespace braid {
namespace {

using Run = Kernel<&cpu::scale_columns>;

Tensor scaled(Context& ctx, ScaleColumnsDims dims, const Tensor& x) {
  dims.x_stride = x.row_stride();
  Tensor y = ctx.empty({dims.rows, dims.width});
  Run::run(ctx, "scale_columns", dims, x.f32(), y.f32());
  return y;
}

}  // namespace

Tensor scale_columns(Context& ctx, const Tensor& x, std::span<const ColumnScale> segments) {
  check(x.rank() == 2, "scale_columns: x has shape {}, want (N, D)", to_string(x.shape()));
  const auto count = static_cast<int64_t>(segments.size());
  check(count <= kMaxColumnScales, "scale_columns: {} segments, want at most {}", count,
        kMaxColumnScales);
  ScaleColumnsDims dims{
      .rows = x.rows(), .width = x.dim(1), .x_stride = 0, .segments = count, .of = {}};
  std::ranges::copy(segments, dims.of);
  int64_t total = 0;
  for (const ColumnScale& segment : segments) {
    check(segment.width >= 0, "scale_columns: a width is {}, want 0 or more", segment.width);
    total += segment.width;
  }
  check(total == x.dim(1), "scale_columns: the widths add up to {}, want the {} columns of x",
        total, x.dim(1));
  Tensor y = scaled(ctx, dims, x);
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [dims](Context& inner, const Tensor& dy) -> Grads {
      return {scaled(inner, dims, dy)};
    });
  }
  return y;
}

}  // namespace braid
