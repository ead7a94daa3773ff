#include "braid/ops/elementwise/elementwise.h"

#include "braid/core/kernel.h"
#include "braid/ops/elementwise/kernels.h"

namespace braid {
namespace {

using Add = Kernel<&cpu::add>;
using Scale = Kernel<&cpu::scale>;
using Multiply = Kernel<&cpu::multiply>;
using ScaleRows = Kernel<&cpu::scale_rows>;
using RowProducts = Kernel<&cpu::row_products>;

// Contiguous tensors are one long row, so that the work splits evenly whatever their shape.
ElementwiseDims dims_of(const Tensor& a, const Tensor& b, const Tensor& y) {
  if (a.contiguous() && b.contiguous() && y.contiguous()) {
    return {.rows = 1, .width = a.count(), .a_stride = 0, .b_stride = 0, .y_stride = 0};
  }
  return {.rows = a.rows(),
          .width = a.row_count(),
          .a_stride = a.row_stride(),
          .b_stride = b.row_stride(),
          .y_stride = y.row_stride()};
}

Tensor scaled(Context& ctx, const Tensor& x, float s) {
  Tensor y = ctx.empty(x.shape());
  Scale::run(ctx, "scale", dims_of(x, x, y), s, x.f32(), y.f32());
  return y;
}

Tensor product(Context& ctx, const Tensor& a, const Tensor& b) {
  Tensor y = ctx.empty(a.shape());
  Multiply::run(ctx, "multiply", dims_of(a, b, y), a.f32(), b.f32(), y.f32());
  return y;
}

}  // namespace

Tensor add(Context& ctx, const Tensor& a, const Tensor& b) {
  check(a.shape() == b.shape(), "add: b has shape {}, want {}", to_string(b.shape()),
        to_string(a.shape()));
  Tensor y = ctx.empty(a.shape());
  Add::run(ctx, "add", dims_of(a, b, y), a.f32(), b.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({a, b}, y, [](Context&, const Tensor& dy) -> Grads { return {dy, dy}; });
  }
  return y;
}

void add_into(Context& ctx, Tensor& acc, const Tensor& x) {
  if (ctx.tape() != nullptr) {
    acc = add(ctx, acc, x);
    return;
  }
  check(acc.shape() == x.shape(), "add_into: x has shape {}, want {}", to_string(x.shape()),
        to_string(acc.shape()));
  Add::run(ctx, "add_into", dims_of(acc, x, acc), acc.f32(), x.f32(), acc.f32());
}

Tensor scale(Context& ctx, const Tensor& x, float s) {
  Tensor y = scaled(ctx, x, s);
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y,
                 [s](Context& inner, const Tensor& dy) -> Grads { return {scaled(inner, dy, s)}; });
  }
  return y;
}

Tensor multiply(Context& ctx, const Tensor& a, const Tensor& b) {
  check(a.shape() == b.shape(), "multiply: b has shape {}, want {}", to_string(b.shape()),
        to_string(a.shape()));
  Tensor y = product(ctx, a, b);
  if (Tape* tape = ctx.tape()) {
    tape->record({a, b}, y, [a, b](Context& inner, const Tensor& dy) -> Grads {
      return {product(inner, b, dy), product(inner, a, dy)};
    });
  }
  return y;
}

namespace {

ElementwiseDims rows_of(const Tensor& a, const Tensor& b, const Tensor& y) {
  return {.rows = a.rows(),
          .width = a.row_count(),
          .a_stride = a.row_stride(),
          .b_stride = b.row_stride(),
          .y_stride = y.row_stride()};
}

}  // namespace

Tensor scale_rows(Context& ctx, const Tensor& x, const Tensor& s) {
  check(x.rank() == 2 && s.count() == x.rows() && s.rows() == x.rows() && s.contiguous(),
        "scale_rows: x has shape {} and s {}, want (N, D) and dense (N)", to_string(x.shape()),
        to_string(s.shape()));
  Tensor y = ctx.empty(x.shape());
  ScaleRows::run(ctx, "scale_rows", rows_of(x, x, y), s.f32(), x.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x, s}, y, [x, s](Context& inner, const Tensor& dy) -> Grads {
      const Tensor dx = inner.empty(x.shape()), ds = inner.empty(s.shape());
      ScaleRows::run(inner, "scale_rows", rows_of(dy, dy, dx), s.f32(), dy.f32(), dx.f32());
      RowProducts::run(inner, "scale_rows", rows_of(x, dy, dx), x.f32(), dy.f32(), ds.f32());
      return {dx, ds};
    });
  }
  return y;
}

}  // namespace braid
