#include "braid/ops/l2_norm/l2_norm.h"

#include "braid/core/kernel.h"
#include "braid/ops/l2_norm/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::l2_norm>;
using Backward = Kernel<&cpu::l2_norm_vjp>;

}  // namespace

Tensor l2_norm(Context& ctx, const Tensor& x, const L2NormOptions& options) {
  check(x.rank() == 2 && x.dim(1) > 0 && options.heads > 0 && x.dim(1) % options.heads == 0,
        "l2_norm: x is {} with {} heads, want (T, D) and a divisor of D", to_string(x.shape()),
        options.heads);
  const L2NormDims dims{.rows = x.rows(),
                        .heads = options.heads,
                        .size = x.dim(1) / options.heads,
                        .x_stride = x.row_stride(),
                        .dy_stride = x.dim(1),
                        .scale = options.scale,
                        .eps = options.eps};
  Tensor y = ctx.empty(x.shape());
  Forward::run(ctx, "l2_norm", dims, x.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      L2NormDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      Backward::run(inner, "l2_norm", back, x.f32(), dy.f32(), dx.f32());
      return {dx};
    });
  }
  return y;
}

}  // namespace braid
