#pragma once

#include <memory>

#include "braid/nn/sublayer.h"

namespace braid {

/// out_scale * f(in_scale * x): two of the options that every sublayer has. Returns `inner` itself
/// where both are 1.
std::unique_ptr<Sublayer> with_multipliers(std::unique_ptr<Sublayer> inner, SpecOptions& options);

/// What a sublayer's y is added to, the other two: `scale` times the residual stream h, or times
/// norm(h) (residual=normed, as in MiniMax-01). Carried out by the stack.
struct ResidualSource {
  bool normed = false;
  float scale = 1;
  bool operator==(const ResidualSource&) const = default;
};
ResidualSource read_residual(SpecOptions& options);

}  // namespace braid
