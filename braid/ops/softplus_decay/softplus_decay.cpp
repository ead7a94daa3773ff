#include "braid/ops/softplus_decay/softplus_decay.h"

#include "braid/core/kernel.h"
#include "braid/ops/softplus_decay/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::softplus_decay>;
using Backward = Kernel<&cpu::softplus_decay_vjp>;

}  // namespace

Tensor softplus_decay(Context& ctx, const Tensor& x, const Tensor& a_log, const Tensor& bias) {
  check(x.rank() == 2 && x.dim(1) > 0, "softplus_decay: x has shape {}, want (T, H)",
        to_string(x.shape()));
  const Shape vector{x.dim(1)};
  check(a_log.shape() == vector && bias.shape() == vector,
        "softplus_decay: a_log is {} and bias {}, want {}", to_string(a_log.shape()),
        to_string(bias.shape()), to_string(vector));
  const SoftplusDecayDims dims{
      .tokens = x.rows(), .heads = x.dim(1), .x_stride = x.row_stride(), .dy_stride = x.dim(1)};
  Tensor y = ctx.empty(x.shape());
  const Tensor rate = ctx.empty(vector);
  Forward::run(ctx, "softplus_decay", dims, x.f32(), a_log.f32(), bias.f32(), rate.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x, a_log, bias}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      SoftplusDecayDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      const Tensor d_a_log = inner.empty(vector), d_bias = inner.empty(vector);
      Backward::run(inner, "softplus_decay", back, x.f32(), bias.f32(), rate.f32(), y.f32(),
                    dy.f32(), dx.f32(), d_a_log.f32(), d_bias.f32());
      return {dx, d_a_log, d_bias};
    });
  }
  return y;
}

}  // namespace braid
