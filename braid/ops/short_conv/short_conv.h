#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/ops/short_conv/kernels.h"

namespace braid {

struct ShortConvOptions {
  bool silu = false;  // y <- silu(y), fused
};

struct ShortConvResult {
  Tensor y;            // (T, C)
  Tensor final_state;  // (S, W - 1, C)
};

/// Causal depthwise convolution over a packed batch:
///
///   y[t, c] = bias[c] + sum_k w[c, k] x[t - (W - 1) + k, c],     k = 0..W-1
///
/// so w[c, W - 1] multiplies the current token. x (T, C) float32, rows may be strided; w (C, W);
/// bias (C) or absent; 2 <= W <= kShortConvMaxWidth. The W - 1 inputs before a sequence's first row
/// are initial[s] (S, W - 1, C), oldest first, zero where `initial` is absent; its last W - 1
/// inputs are returned. Nothing aliases. A token's bits depend neither on the rest of the batch nor
/// on where the sequence is cut.
///
/// vjp: x, w, bias and `initial`, from the gradients of y and of final_state.
///
/// Source: `causal_conv1d` (Dao-AILab), whose state this is.
ShortConvResult short_conv(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias,
                           const Tensor& initial, const SequenceBatch& batch,
                           const ShortConvOptions& options = {});

/// The same for inference: state[s] (W - 1, C) float32 is read and overwritten. Refuses a context
/// with a tape.
Tensor short_conv_in_place(Context& ctx, const Tensor& x, const Tensor& w, const Tensor& bias,
                           std::span<float* const> state, const SequenceBatch& batch,
                           const ShortConvOptions& options = {});

}  // namespace braid
