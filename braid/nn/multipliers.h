#pragma once

#include <memory>

#include "braid/nn/sublayer.h"

namespace braid {

/// out_scale * f(in_scale * x): the two options that every sublayer has. Returns `inner` itself
/// where both are 1.
std::unique_ptr<Sublayer> with_multipliers(std::unique_ptr<Sublayer> inner, SpecOptions& options);

}  // namespace braid
