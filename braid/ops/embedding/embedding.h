#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/ops/linear/weight.h"

namespace braid {

/// y[i, :] = table[ids[i], :].
///
/// table (V, D): the packed weight itself, so a tied head costs no second copy (its plain matrix is
/// read where it keeps one); y (M, D) f32.
/// vjp: dtable[ids[i], :] += dy[i, :], in the order of i.
/// Throws Error(kUsage) for an id outside 0..V-1, naming it.
Tensor embedding(Context& ctx, std::span<const int32_t> ids, const Weight& table);

}  // namespace braid
