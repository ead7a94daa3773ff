#pragma once

#include "braid/core/context.h"

namespace braid {

/// a + b, of one shape, float32; rows may be strided. vjp: dy goes to both.
Tensor add(Context& ctx, const Tensor& a, const Tensor& b);

/// acc <- acc + x: a step of the residual stream. Outside training the sum is written over acc's
/// data, so other tensors that share it see it change; where a tape records, acc becomes a new
/// tensor, since earlier ops may have kept the old one.
void add_into(Context& ctx, Tensor& acc, const Tensor& x);

/// s x, float32; rows may be strided. vjp: s dy.
Tensor scale(Context& ctx, const Tensor& x, float s);

/// a b element by element, of one shape, float32; rows may be strided; b may be a. vjp: b dy, a dy.
Tensor multiply(Context& ctx, const Tensor& a, const Tensor& b);

/// y[n] = s[n] x[n], a factor a row: x (N, D) f32, rows may be strided; s (N) or (N, 1) f32, dense.
/// vjp: s dy, and the inner products of x and dy by row.
Tensor scale_rows(Context& ctx, const Tensor& x, const Tensor& s);

}  // namespace braid
