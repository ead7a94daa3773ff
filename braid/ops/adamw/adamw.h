#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"

namespace braid {

struct AdamWOptions {
  float lr = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;  // decoupled: p <- p - lr weight_decay p
  int64_t step = 1;           // counts from 1; corrects the bias of m and v
  float gradient_scale = 1;   // multiplies g first; a clipping factor
};

/// One AdamW update of a float32 parameter, in place; p, m, v and g are contiguous, of one shape:
///
///   g <- gradient_scale g;   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
///   p <- p - lr (weight_decay p + (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps))
///
/// g itself is not changed. Not recorded. Throws Error(kUsage) on other shapes and on step < 1.
/// Source: Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2.
void adamw(Context& ctx, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v,
           const AdamWOptions& options);

/// sqrt of the sum of squares over all elements of contiguous float32 tensors, in float64 and in an
/// order fixed by their sizes alone. Waits for the device.
double global_norm(Context& ctx, std::span<const Tensor> tensors);

/// The factor that brings a gradient of this norm down to `max_norm`; 1 where it is no longer, or
/// where `max_norm` is 0 (no clipping).
double clip_factor(double norm, double max_norm);

}  // namespace braid
