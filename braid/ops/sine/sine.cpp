#include "braid/ops/sine/sine.h"

#include "braid/core/kernel.h"
#include "braid/ops/sine/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::sine>;
using Backward = Kernel<&cpu::sine_vjp>;

Tensor sine(Context& ctx, const Tensor& x, const Tensor& frequency) {
  check(x.rank() == 2, "sine: x has shape {}, want (N, F)", to_string(x.shape()));
  check(frequency.shape() == Shape{x.dim(1)}, "sine: frequency has shape {}, want ({})",
        to_string(frequency.shape()), x.dim(1));
  const SineDims dims{.rows = x.rows(), .width = x.dim(1), .x_stride = x.row_stride()};
  Tensor y = ctx.empty(x.shape());
  Forward::run(ctx, "sine", dims, x.f32(), frequency.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x, frequency}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      SineDims back = dims;
      back.dy_stride = dy.row_stride();
      Tensor dx = inner.empty(x.shape()), dfrequency = inner.empty(frequency.shape());
      Backward::run(inner, "sine", back, x.f32(), frequency.f32(), dy.f32(), dx.f32(),
                    dfrequency.f32());
      return {dx, dfrequency};
    });
  }
  return y;
}

}  // namespace braid
