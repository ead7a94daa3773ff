#pragma once

#include <cstdint>

#include "braid/ops/attention/kernels.h"

namespace braid::cpu {

// Rows that meet a page together, so that scores and weights stay in the first cache.
inline constexpr int64_t kBlockRows = 14;
inline constexpr int64_t kVjpBlockRows = 56;
// Below every score; its difference to one underflows to a weight of zero.
inline constexpr float kNoScore = -3.0e38f;
inline constexpr int64_t kLaneSlots = 16;  // floats for one vector of any width

/// Hands out runs of a worker's scratch; with a null base it only counts.
class ScratchCursor {
 public:
  explicit ScratchCursor(float* base) : base_(base) {}
  float* take(int64_t count) {
    float* from = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count + kLaneSlots - 1) / kLaneSlots * kLaneSlots;
    return from;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

/// How products are formed. Keys and values in bfloat16 meet queries and weights rounded to it,
/// and products are summed in float32: by pairs where simd::uses_bf16_dot(), else one by one.
enum class AttentionMath { kF32, kRounded, kPairs };

struct AttentionScratch {
  AttentionScratch(const AttentionDims& dims, ScratchCursor& at)
      : q(at.take(kAttentionItemRows * dims.head_dim)),
        y(at.take(kAttentionItemRows * dims.value_dim)),
        max(at.take(kAttentionItemRows + kLaneSlots)),
        sum(at.take(kAttentionItemRows * kLaneSlots)),
        s(at.take(kBlockRows * kPageTokens)),
        p(at.take(kBlockRows * kPageTokens)),
        k(at.take(kPageTokens * dims.head_dim)),
        v(at.take(kPageTokens * dims.value_dim)) {}

  float* q;    // (rows, hd), scaled for base-2 exponentials; with kPairs bfloat16
  float* y;    // (rows, dv), not yet divided by the sum
  float* max;  // (rows)
  float* sum;  // (rows, 16), a partial sum for each lane
  float* s;    // (kBlockRows, 64): scores, then weights
  float* p;    // (kBlockRows, 64): with kPairs the weights in bfloat16
  float* k;    // (2, hd, 32)
  float* v;    // (dv / 32, 64, w)
};

struct AttentionVjpScratch {
  AttentionVjpScratch(const AttentionDims& dims, ScratchCursor& at)
      : q(at.take(kVjpBlockRows * dims.head_dim)),
        dq(at.take(kVjpBlockRows * dims.head_dim)),
        dy(at.take(kVjpBlockRows * dims.value_dim)),
        lse(at.take(kVjpBlockRows)),
        delta(at.take(kVjpBlockRows)),
        p(at.take(kVjpBlockRows * kPageTokens)),
        ds(at.take(kVjpBlockRows * kPageTokens)) {}

  float *q, *dq;       // (rows, hd), q scaled for base-2 exponentials
  float* dy;           // (rows, dv)
  float *lse, *delta;  // (rows); delta = <dy, y>
  float *p, *ds;       // (rows, 64): scores, then weights; gradient of the weights, of the scores
};

}  // namespace braid::cpu
