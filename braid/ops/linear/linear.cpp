#include "braid/ops/linear/linear.h"

#include "braid/core/kernel.h"

namespace braid {
namespace {

using Product = Kernel<&cpu::linear, &cuda::linear>;
using Pack = Kernel<&cpu::pack, &cuda::pack>;
using ColumnSum = Kernel<&cpu::column_sum, &cuda::column_sum>;

// The element strides of a matrix and of its transpose.
struct Strides {
  int64_t row, column;
};
Strides strides(const Tensor& x) { return {x.row_stride(), 1}; }
Strides transposed(const Tensor& x) { return {1, x.row_stride()}; }

struct Start {
  const float* data = nullptr;
  int64_t row = 0;
};

// c (m, n) <- start + a b^T for packed b.
Tensor product(Context& ctx, int64_t m, const Tensor& a, Strides a_strides, const PackedMatrix& b,
               const void* packed, const Start& start = {}) {
  Tensor c = ctx.empty({m, b.n});
  const LinearDims dims{.m = m,
                        .b = b,
                        .a_row = a_strides.row,
                        .a_column = a_strides.column,
                        .c_row = b.n,
                        .start_row = start.row};
  const bool on_cpu = ctx.device().kind == DeviceKind::kCpu;
  const auto bytes =
      static_cast<int64_t>(on_cpu ? cpu::linear_scratch_bytes(dims, ctx.threads().size())
                                  : cuda::linear_scratch_bytes(dims));
  const Tensor scratch = bytes > 0 ? ctx.empty({bytes}, DType::kU8) : Tensor{};
  Product::run(ctx, "linear", dims, a.f32(), packed, start.data, c.f32(),
               bytes > 0 ? scratch.raw() : nullptr);
  return c;
}

// dW (N, K) = dy^T x: the reduction runs over the M rows that both have.
Tensor weight_gradient(Context& ctx, const Tensor& dy, const Tensor& x, DType dtype) {
  PackDims pack{.to = {.n = x.dim(1), .k = x.rows(), .dtype = dtype},
                .from = DType::kF32,
                .row = 1,
                .column = x.row_stride()};
  if (ctx.device().kind != DeviceKind::kCpu) {
    // A plain matrix: x itself, turned by its strides, or rounded.
    pack.to.row = 1;
    pack.to.column = dtype == DType::kF32 ? x.row_stride() : x.dim(1);
    if (dtype == DType::kF32) {
      return product(ctx, dy.dim(1), dy, transposed(dy), pack.to, x.raw());
    }
  }
  const Tensor packed = ctx.empty({static_cast<int64_t>(pack.to.bytes())}, DType::kU8);
  Pack::run(ctx, "linear", pack, x.raw(), packed.raw());
  return product(ctx, dy.dim(1), dy, transposed(dy), pack.to, packed.raw());
}

Tensor input_gradient(Context& ctx, const Tensor& dy, const Weight& w) {
  const Tensor packed = w.packed_transpose(ctx);
  return product(ctx, dy.rows(), dy, strides(dy), w.transposed_matrix(), packed.raw());
}

void check_operands(const char* op, const Tensor& x, const Weight& w) {
  check(w.defined(), "{}: the weight is empty", op);
  check(x.rank() == 2 && x.dim(1) == w.cols(), "{}: x has shape {}, want (M, {})", op,
        to_string(x.shape()), w.cols());
}

}  // namespace

Tensor linear(Context& ctx, const Tensor& x, const Weight& w, const Tensor& bias) {
  check_operands("linear", x, w);
  check(!bias.defined() || bias.shape() == Shape{w.rows()}, "linear: bias has shape {}, want ({})",
        to_string(bias.shape()), w.rows());
  Tensor y = product(ctx, x.rows(), x, strides(x), w.matrix(), w.packed(),
                     {.data = bias.defined() ? bias.f32() : nullptr});
  if (Tape* tape = ctx.tape()) {
    const bool want_dx = Tape::tracks(x), want_dw = Tape::tracks(w.plain());
    const bool want_dbias = Tape::tracks(bias);
    tape->record({x, w.plain(), bias}, y,
                 [=, saved = want_dw ? x : Tensor{}](Context& inner, const Tensor& dy) -> Grads {
                   Grads grads(3);
                   if (want_dx) grads[0] = input_gradient(inner, dy, w);
                   if (want_dw) grads[1] = weight_gradient(inner, dy, saved, w.dtype());
                   if (want_dbias) {
                     grads[2] = inner.empty({dy.dim(1)});
                     ColumnSum::run(inner, "linear", dy.rows(), dy.dim(1), dy.row_stride(),
                                    dy.f32(), grads[2].f32());
                   }
                   return grads;
                 });
  }
  return y;
}

Tensor linear_residual(Context& ctx, const Tensor& x, const Weight& w, const Tensor& residual) {
  check_operands("linear_residual", x, w);
  check(residual.shape() == Shape({x.rows(), w.rows()}),
        "linear_residual: residual has shape {}, want ({}, {})", to_string(residual.shape()),
        x.rows(), w.rows());
  Tensor y = product(ctx, x.rows(), x, strides(x), w.matrix(), w.packed(),
                     {.data = residual.f32(), .row = residual.row_stride()});
  if (Tape* tape = ctx.tape()) {
    const bool want_dx = Tape::tracks(x), want_dw = Tape::tracks(w.plain());
    tape->record({x, w.plain(), residual}, y,
                 [=, saved = want_dw ? x : Tensor{}](Context& inner, const Tensor& dy) -> Grads {
                   Grads grads(3);
                   if (want_dx) grads[0] = input_gradient(inner, dy, w);
                   if (want_dw) grads[1] = weight_gradient(inner, dy, saved, w.dtype());
                   grads[2] = dy;
                   return grads;
                 });
  }
  return y;
}

}  // namespace braid
