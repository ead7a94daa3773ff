#include "braid/ops/activation/activation.h"

#include "braid/core/kernel.h"
#include "braid/ops/activation/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::activation>;
using Backward = Kernel<&cpu::activation_vjp>;

}  // namespace

Tensor activation(Context& ctx, const Tensor& x, Activation kind) {
  check(x.rank() > 0, "activation: x is a scalar, want (N, ...)");
  const ActivationDims dims{.rows = x.rows(),
                            .width = x.row_count(),
                            .x_stride = x.row_stride(),
                            .dy_stride = x.row_count(),
                            .kind = kind};
  Tensor y = ctx.empty(x.shape());
  Forward::run(ctx, "activation", dims, x.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      ActivationDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      Backward::run(inner, "activation", back, x.f32(), dy.f32(), dx.f32());
      return {dx};
    });
  }
  return y;
}

}  // namespace braid
