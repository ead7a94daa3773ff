#pragma once

#include "braid/core/context.h"

namespace braid::bench {

/// A layer of 256 experts of which a token chooses 8 (width 512, expert width 128): decode beside
/// the read bandwidth of the same moment; many tokens, and training, beside dense products of as
/// many operations, through `linear` in the same rounds. Prints to standard output; throws Error if
/// a result is wrong.
void bench_experts(Context& ctx);

}  // namespace braid::bench
