#pragma once

#include "braid/core/context.h"
#include "braid/ops/linear/weight.h"

namespace braid {

/// y = x W^T + bias.
///
/// x (M, K) f32, rows may be strided; w (N, K) packed f32 or bf16; bias (N) f32 or absent; y (M, N)
/// f32. With bf16 weights x is rounded to bf16 where simd::uses_bf16_dot(), and sums stay in
/// f32. An element of y is one chain of multiply-adds over K: a row depends
/// neither on M nor on the number of threads, bit for bit.
/// vjp: dx = dy W, dW = dy^T x, dbias = column sum of dy; in the products' dtype, as y.
/// Throws Error(kUsage) where shapes do not fit.
Tensor linear(Context& ctx, const Tensor& x, const Weight& w, const Tensor& bias = {});

/// y = residual + x W^T in one pass; residual (M, N) f32, rows may be strided. Otherwise as
/// `linear`; the gradient of residual is dy.
Tensor linear_residual(Context& ctx, const Tensor& x, const Weight& w, const Tensor& residual);

}  // namespace braid
