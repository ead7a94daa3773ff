#pragma once

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// Learned relative positions for linear attention: each channel becomes two, turned by an angle
/// that grows with the position, so that the dot product of a query at t and a key at s gets
/// cos(theta (t - s)) on every channel:
///
///   y[t, h] = [x cos(theta_h p_t) | x sin(theta_h p_t)]          p_t the token's absolute position
///
/// x (T, H d) float32, rows may be strided; theta (H, d); y (T, H 2 d), new and dense. The angle is
/// reduced in float64. vjp: x and theta; sums over tokens are in fixed blocks.
/// Source: Qin et al., arXiv:2307.14995; TransNormerLLM `Lrpe`.
Tensor lrpe(Context& ctx, const Tensor& x, const Tensor& theta, const SequenceBatch& batch);

}  // namespace braid
