#pragma once

#include "braid/core/context.h"

namespace braid {

enum class GeluForm : uint8_t {
  kErf,   // x Phi(x), Phi the normal distribution function
  kTanh,  // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
};

/// Gaussian error linear unit, element by element, of any shape, float32; rows may be strided.
/// Returns a new tensor. vjp: dx. Source: Hendrycks & Gimpel, arXiv:1606.08415.
Tensor gelu(Context& ctx, const Tensor& x, GeluForm form = GeluForm::kErf);

}  // namespace braid
