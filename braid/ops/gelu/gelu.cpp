#include "braid/ops/gelu/gelu.h"

#include "braid/core/kernel.h"
#include "braid/ops/gelu/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::gelu>;
using Backward = Kernel<&cpu::gelu_vjp>;

Tensor gelu(Context& ctx, const Tensor& x, GeluForm form) {
  check(x.rank() > 0, "gelu: x is a scalar, want (N, ...)");
  const GeluDims dims{.rows = x.rows(),
                      .width = x.row_count(),
                      .x_stride = x.row_stride(),
                      .dy_stride = x.row_count(),
                      .use_tanh = form == GeluForm::kTanh};
  Tensor y = ctx.empty(x.shape());
  Forward::run(ctx, "gelu", dims, x.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      GeluDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      Backward::run(inner, "gelu", back, x.f32(), dy.f32(), dx.f32());
      return {dx};
    });
  }
  return y;
}

}  // namespace braid
