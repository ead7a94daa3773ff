#include "braid/ops/wkv7_output/wkv7_output.h"

#include "braid/core/kernel.h"
#include "braid/ops/wkv7_output/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::wkv7_output>;
using Backward = Kernel<&cpu::wkv7_output_vjp>;

void check_one(const char* name, const Tensor& x, const Shape& want) {
  if (x.shape() == want && x.dtype() == DType::kF32 && x.contiguous()) return;
  fail(ErrorKind::kUsage, "wkv7_output: {} is {} {}, want contiguous f32 {}", name,
       to_string(x.dtype()), to_string(x.shape()), to_string(want));
}

Wkv7OutputPointers pointers_of(const Wkv7OutputInputs& in) {
  return {in.y.f32(),    in.r.f32(),   in.k.f32(),      in.v.f32(),
          in.gate.f32(), in.r_k.f32(), in.weight.f32(), in.bias.f32()};
}

// In the order of the recorded inputs: y r k v gate r_k weight bias.
Grads vjp(Context& ctx, const Wkv7OutputInputs& in, const Wkv7OutputDims& dims, const Tensor& dy) {
  const Tensor d_out = dy.contiguous() ? dy : ctx.to_device(dy);
  const Shape shape = in.y.shape(), vector{dims.width()};
  Grads grads;
  for (int i = 0; i < 5; ++i) grads.push_back(ctx.empty(shape));
  const Tensor vectors = ctx.empty({3, dims.width()});
  const Tensor partial = ctx.empty({dims.blocks(), 3, dims.width()});
  Backward::run(ctx, "wkv7_output", dims, pointers_of(in), d_out.f32(), partial.f32(),
                Wkv7OutputGrads{grads[0].f32(), grads[1].f32(), grads[2].f32(), grads[3].f32(),
                                grads[4].f32(), vectors.f32()});
  grads.push_back(vectors.slice_rows(0, 1).reshape({dims.heads, dims.head_dim}));
  grads.push_back(vectors.slice_rows(1, 2).reshape(vector));
  grads.push_back(vectors.slice_rows(2, 3).reshape(vector));
  return grads;
}

}  // namespace

Tensor wkv7_output(Context& ctx, const Wkv7OutputInputs& in, int64_t heads, float eps) {
  check(in.y.rank() == 2 && heads > 0 && in.y.dim(1) > 0 && in.y.dim(1) % heads == 0,
        "wkv7_output: y has shape {}, want (N, H P) for {} heads", to_string(in.y.shape()), heads);
  const Shape shape = in.y.shape();
  const Wkv7OutputDims dims{
      .rows = shape[0], .heads = heads, .head_dim = shape[1] / heads, .eps = eps};
  check_one("y", in.y, shape);
  check_one("r", in.r, shape);
  check_one("k", in.k, shape);
  check_one("v", in.v, shape);
  check_one("gate", in.gate, shape);
  check_one("r_k", in.r_k, {dims.heads, dims.head_dim});
  check_one("weight", in.weight, {dims.width()});
  check_one("bias", in.bias, {dims.width()});
  Tensor out = ctx.empty(shape);
  Forward::run(ctx, "wkv7_output", dims, pointers_of(in), out.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({in.y, in.r, in.k, in.v, in.gate, in.r_k, in.weight, in.bias}, out,
                 [=](Context& inner, const Tensor& d_out) { return vjp(inner, in, dims, d_out); });
  }
  return out;
}

}  // namespace braid
