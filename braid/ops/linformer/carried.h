#pragma once

#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/ops/linformer/kernels.h"
#include "braid/ops/linformer/linformer.h"

namespace braid {

/// The causal form over carried states; shapes have been checked.
Tensor linformer_carried(Context& ctx, const LinformerDims& dims, const Tensor& q, const Tensor& k,
                         const Tensor& v, const Tensor& e, const Tensor& f,
                         const SequenceBatch& batch, std::span<const LinformerState> states);

}  // namespace braid
