#include "braid/ops/layer_norm/layer_norm.h"

#include "braid/core/kernel.h"
#include "braid/ops/layer_norm/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::layer_norm>;
using Backward = Kernel<&cpu::layer_norm_vjp>;

Tensor layer_norm(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& b, float eps) {
  check(x.rank() == 2 && x.dim(1) > 0, "layer_norm: x has shape {}, want (N, D)",
        to_string(x.shape()));
  const LayerNormDims dims{.rows = x.rows(),
                           .width = x.dim(1),
                           .x_stride = x.row_stride(),
                           .dy_stride = x.dim(1),
                           .eps = eps};
  check(w.shape() == Shape{dims.width}, "layer_norm: w has shape {}, want ({})",
        to_string(w.shape()), dims.width);
  check(!b.defined() || b.shape() == Shape{dims.width}, "layer_norm: b has shape {}, want ({})",
        to_string(b.shape()), dims.width);
  Tensor y = ctx.empty(x.shape());
  const Tensor stats = ctx.empty({dims.rows, 2});
  Forward::run(ctx, "layer_norm", dims, x.f32(), w.f32(), b.defined() ? b.f32() : nullptr, y.f32(),
               stats.f32());

  if (Tape* tape = ctx.tape()) {
    tape->record({x, w, b}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      LayerNormDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      const Tensor dwb = inner.empty({2, back.width});
      const Tensor partial = inner.empty({back.blocks(), 2, back.width});
      Backward::run(inner, "layer_norm", back, x.f32(), w.f32(), stats.f32(), dy.f32(), dx.f32(),
                    dwb.f32(), partial.f32());
      const Shape shape{back.width};
      return {dx, dwb.slice_rows(0, 1).reshape(shape), dwb.slice_rows(1, 2).reshape(shape)};
    });
  }
  return y;
}

}  // namespace braid
