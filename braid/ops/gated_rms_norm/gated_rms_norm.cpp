#include "braid/ops/gated_rms_norm/gated_rms_norm.h"

#include "braid/core/kernel.h"
#include "braid/ops/gated_rms_norm/kernels.h"

namespace braid {
namespace {

using ForwardKernel = Kernel<&cpu::gated_rms_norm>;
using VjpKernel = Kernel<&cpu::gated_rms_norm_vjp>;

Tensor ones(Context& ctx, int64_t count) {
  return ctx.to_device(host_tensor(std::vector<float>(static_cast<size_t>(count), 1.0f), {count}));
}

}  // namespace

Tensor gated_rms_norm(Context& ctx, const Tensor& y, const Tensor& z, const Tensor& weight,
                      const GatedRmsNormOptions& options) {
  check(y.rank() == 2 && y.dtype() == DType::kF32, "gated_rms_norm: y is {} {}, want f32 (T, E)",
        to_string(y.dtype()), to_string(y.shape()));
  check(z.shape() == y.shape() && z.dtype() == DType::kF32,
        "gated_rms_norm: z is {} {}, want f32 {}", to_string(z.dtype()), to_string(z.shape()),
        to_string(y.shape()));
  const int64_t width = y.dim(1);
  check(options.groups > 0 && width % options.groups == 0,
        "gated_rms_norm: {} groups, want a divisor of {} channels", options.groups, width);
  const int64_t size = width / options.groups;
  const Tensor w = weight.defined() ? weight : ones(ctx, size);
  check((w.shape() == Shape{width} || w.shape() == Shape{size}) && w.dtype() == DType::kF32,
        "gated_rms_norm: w is {} {}, want f32 ({}) or ({})", to_string(w.dtype()),
        to_string(w.shape()), width, size);
  const GatedRmsNormDims dims{.rows = y.rows(),
                              .width = width,
                              .groups = options.groups,
                              .y_stride = y.row_stride(),
                              .z_stride = z.row_stride(),
                              .eps = options.eps,
                              .norm_before_gate = options.norm_before_gate,
                              .shared_weight = w.dim(0) != width};
  Tensor out = ctx.empty(y.shape());
  ForwardKernel::run(ctx, "gated_rms_norm", dims, y.f32(), z.f32(), w.f32(), out.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({y, z, w}, out, [=](Context& inner, const Tensor& dout) -> Grads {
      Tensor dy = inner.empty(y.shape()), dz = inner.empty(z.shape()), dw = inner.empty(w.shape());
      const int64_t blocks = (dims.rows + kGatedRmsNormBlock - 1) / kGatedRmsNormBlock;
      const Tensor partial = inner.empty({blocks, dims.weight_size()});
      VjpKernel::run(inner, "gated_rms_norm", dims, dout.row_stride(), y.f32(), z.f32(), w.f32(),
                     dout.f32(), partial.f32(), dy.f32(), dz.f32(), dw.f32());
      return {dy, dz, dw};
    });
  }
  return out;
}

}  // namespace braid
