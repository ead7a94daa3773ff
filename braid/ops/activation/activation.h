#pragma once

#include "braid/core/context.h"

namespace braid {

enum class Activation : uint8_t {
  kExp,          // e^x
  kSigmoid,      // 1 / (1 + e^-x)
  kTanh,         //
  kSilu,         // x sigmoid(x)
  kSoftplus,     // ln(1 + e^x)
  kRelu,         // max(x, 0), with slope 0 at 0
  kReluSquared,  // max(x, 0)^2
  kEluPlusOne,   // x + 1 where x > 0, else e^x: a positive feature map of linear attention
};

/// y = f(x), element by element, of any shape, float32; rows may be strided. Returns a new, dense
/// tensor. vjp: dx = f'(x) dy, from x. Every function is good to a few units in the last place, far
/// out on both sides too; NaN in, NaN out.
/// Sources of the less usual ones: So et al., arXiv:2109.08668 (relu squared); Katharopoulos et
/// al., arXiv:2006.16236 (elu + 1).
Tensor activation(Context& ctx, const Tensor& x, Activation kind);

}  // namespace braid
