#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "braid/core/rng.h"

namespace braid {

/// How the next token is drawn from logits. Filters apply in the order top_k, then top_p.
struct SamplerOptions {
  double temperature = 0.8;  // 0: the likeliest token, lowest id first
  double top_p = 1.0;        // keep the likeliest tokens up to this mass
  int64_t top_k = 0;         // keep this many; 0: all
  uint64_t seed = 0;
};

/// Draws tokens. The i-th draw is a function of (seed, i, logits) alone.
class Sampler {
 public:
  /// Throws Error(kUsage) for a temperature < 0, top_p outside (0, 1] or top_k < 0.
  explicit Sampler(const SamplerOptions& options);

  /// logits (V), -inf for a token that cannot be drawn. Throws Error(kFormat) if one is NaN or +inf
  /// or all are -inf.
  int32_t sample(std::span<const float> logits);

 private:
  SamplerOptions options_;
  Rng rng_;
  uint64_t draws_ = 0;
  std::vector<std::pair<float, int32_t>> candidates_;
};

}  // namespace braid
