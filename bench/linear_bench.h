#pragma once

#include "braid/core/context.h"

namespace braid::bench {

/// Products with packed weights at model shapes, prefill and decode, f32 and bf16: checked against
/// a double-precision sum, then timed beside oneDNN (where built with it) and the machine's ceiling
/// in the same rounds. Prints a table to standard output; throws Error if a product is wrong.
void bench_linear(Context& ctx, int rounds = 15);

}  // namespace braid::bench
