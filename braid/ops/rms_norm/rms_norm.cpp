#include "braid/ops/rms_norm/rms_norm.h"

#include "braid/core/kernel.h"
#include "braid/ops/rms_norm/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::rms_norm, &cuda::rms_norm>;
using Backward = Kernel<&cpu::rms_norm_vjp, &cuda::rms_norm_vjp>;

Tensor rms_norm(Context& ctx, const Tensor& x, const Tensor& w, float eps) {
  const bool in_runs = x.rank() == 3;
  check((x.rank() == 2 || in_runs) && x.row_count() > 0,
        "rms_norm: x has shape {}, want (N, D) or (N, H, D)", to_string(x.shape()));
  const int64_t run = in_runs ? x.dim(1) : 1;
  const RmsNormDims dims{.rows = x.rows() * run,
                         .width = x.row_count() / run,
                         .x_stride = x.row_stride(),
                         .dy_stride = x.row_count(),
                         .eps = eps,
                         .run = run};
  check(!w.defined() || w.shape() == Shape{dims.width}, "rms_norm: w has shape {}, want ({})",
        to_string(w.shape()), dims.width);
  const float* weight = w.defined() ? w.f32() : nullptr;
  Tensor y = ctx.empty(x.shape());
  const Tensor rstd = ctx.empty({dims.rows});  // saved: cheaper to keep than to recompute
  Forward::run(ctx, "rms_norm", dims, x.f32(), weight, y.f32(), rstd.f32());

  if (Tape* tape = ctx.tape()) {
    tape->record({x, w}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      RmsNormDims back = dims;
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape());
      const Tensor dw = Tape::tracks(w) ? inner.empty(w.shape()) : Tensor{};
      const Tensor partial = dw.defined() ? inner.empty({back.blocks(), back.width}) : Tensor{};
      Backward::run(inner, "rms_norm", back, x.f32(), w.defined() ? w.f32() : nullptr, rstd.f32(),
                    dy.f32(), dx.f32(), dw.defined() ? dw.f32() : nullptr,
                    dw.defined() ? partial.f32() : nullptr);
      return {dx, dw};
    });
  }
  return y;
}

}  // namespace braid
