#include "braid/ops/swiglu/swiglu.h"

#include "braid/core/kernel.h"
#include "braid/ops/swiglu/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::swiglu, &cuda::swiglu>;
using Backward = Kernel<&cpu::swiglu_vjp, &cuda::swiglu_vjp>;

Tensor swiglu(Context& ctx, const Tensor& gate_up) {
  check(gate_up.rank() == 2 && gate_up.dim(1) > 0 && gate_up.dim(1) % 2 == 0,
        "swiglu: gate_up has shape {}, want (N, 2F)", to_string(gate_up.shape()));
  const SwigluDims dims{.rows = gate_up.rows(),
                        .width = gate_up.dim(1) / 2,
                        .x_stride = gate_up.row_stride(),
                        .dy_stride = gate_up.dim(1) / 2};
  Tensor y = ctx.empty({dims.rows, dims.width});
  Forward::run(ctx, "swiglu", dims, gate_up.f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({gate_up}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      SwigluDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(gate_up.shape());
      Backward::run(inner, "swiglu", back, gate_up.f32(), dy.f32(), dx.f32());
      return {dx};
    });
  }
  return y;
}

}  // namespace braid
