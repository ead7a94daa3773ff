#include "braid/ops/wkv7_inputs/wkv7_inputs.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/wkv7_inputs/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::wkv7_inputs>;
using Backward = Kernel<&cpu::wkv7_inputs_vjp>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

void check_one(const char* name, const Tensor& x, const Shape& want) {
  if (x.shape() == want && x.dtype() == DType::kF32 && x.contiguous()) return;
  fail(ErrorKind::kUsage, "wkv7_inputs: {} is {} {}, want contiguous f32 {}", name,
       to_string(x.dtype()), to_string(x.shape()), to_string(want));
}

Wkv7InputsDims check_inputs(const Wkv7Raw& raw, int64_t heads) {
  check(raw.k.rank() == 2 && heads > 0 && raw.k.dim(1) > 0 && raw.k.dim(1) % heads == 0,
        "wkv7_inputs: k has shape {}, want (N, H P) for {} heads", to_string(raw.k.shape()), heads);
  const Shape rows = raw.k.shape(), vector{rows[1]};
  check_one("decay", raw.decay, rows);
  check_one("k", raw.k, rows);
  check_one("rate", raw.rate, rows);
  check_one("k_k", raw.k_k, vector);
  check_one("k_a", raw.k_a, vector);
  const bool mixes = raw.v.defined() || raw.v_first.defined() || raw.v_mix.defined();
  if (mixes) {
    check_one("v", raw.v, rows);
    check_one("v_first", raw.v_first, rows);
    check_one("v_mix", raw.v_mix, rows);
  }
  return {.rows = rows[0], .heads = heads, .head_dim = rows[1] / heads, .mix_values = mixes};
}

Wkv7RawPointers pointers_of(const Wkv7Raw& raw) {
  return {raw.decay.f32(), raw.k.f32(),    raw.rate.f32(),       raw.k_k.f32(),
          raw.k_a.f32(),   pointer(raw.v), pointer(raw.v_first), pointer(raw.v_mix)};
}

// In the order of the recorded inputs: decay k rate k_k k_a v v_first v_mix.
Grads vjp(Context& ctx, const Wkv7Raw& raw, int64_t heads, const std::vector<Tensor>& dys) {
  const Wkv7InputsDims dims = check_inputs(raw, heads);
  const Shape shape = raw.k.shape();
  std::vector<Tensor> dy;
  for (const Tensor& one : dys) {
    dy.push_back(!one.defined() ? ctx.zeros(shape) : one.contiguous() ? one : ctx.to_device(one));
  }
  const Tensor d_decay = ctx.empty(shape), dk = ctx.empty(shape), d_rate = ctx.empty(shape);
  const Tensor vectors = ctx.empty({2, dims.width()});
  const Tensor partial = ctx.empty({dims.blocks(), 2, dims.width()});
  Tensor dv, d_first, d_mix;
  if (dims.mix_values) {
    dv = ctx.empty(shape);
    d_first = ctx.empty(shape);
    d_mix = ctx.empty(shape);
  }
  Backward::run(ctx, "wkv7_inputs", dims, pointers_of(raw),
                Wkv7PreparedGrads{dy[0].f32(), dy[1].f32(), dy[2].f32(), dy[3].f32(),
                                  dims.mix_values ? dy[4].f32() : nullptr},
                partial.f32(),
                Wkv7RawGrads{d_decay.f32(), dk.f32(), d_rate.f32(), pointer(dv), pointer(d_first),
                             pointer(d_mix), vectors.f32()});
  const Shape vector{dims.width()};
  return {d_decay,
          dk,
          d_rate,
          vectors.slice_rows(0, 1).reshape(vector),
          vectors.slice_rows(1, 2).reshape(vector),
          dv,
          d_first,
          d_mix};
}

}  // namespace

Wkv7Prepared wkv7_inputs(Context& ctx, const Wkv7Raw& raw, int64_t heads) {
  const Wkv7InputsDims dims = check_inputs(raw, heads);
  const Shape shape = raw.k.shape();
  Wkv7Prepared out{.log_decay = ctx.empty(shape),
                   .k = ctx.empty(shape),
                   .a = ctx.empty(shape),
                   .b = ctx.empty(shape),
                   .v = dims.mix_values ? ctx.empty(shape) : Tensor()};
  Forward::run(ctx, "wkv7_inputs", dims, pointers_of(raw),
               Wkv7PreparedPointers{out.log_decay.f32(), out.k.f32(), out.a.f32(), out.b.f32(),
                                    pointer(out.v)});
  if (Tape* tape = ctx.tape()) {
    std::vector<Tensor*> outputs{&out.log_decay, &out.k, &out.a, &out.b};
    if (dims.mix_values) outputs.push_back(&out.v);
    tape->record({raw.decay, raw.k, raw.rate, raw.k_k, raw.k_a, raw.v, raw.v_first, raw.v_mix},
                 outputs, [=](Context& inner, const std::vector<Tensor>& dys) {
                   return vjp(inner, raw, heads, dys);
                 });
  }
  return out;
}

}  // namespace braid
