#pragma once

#include <string_view>

#include "braid/core/context.h"
#include "braid/ops/experts/experts.h"

namespace braid {

/// What `act` of a feed-forward names: swiglu, relu2, relu, gelu or silu. Which of them a sublayer
/// takes is its own option list's to say.
ExpertActivation activation_of(std::string_view name);

/// h (N, F), or (N, 2F) of the gated one, through the activation.
Tensor activate(Context& ctx, const Tensor& h, ExpertActivation act);

}  // namespace braid
