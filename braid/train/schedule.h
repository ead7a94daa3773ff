#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace braid {

/// Linear warm-up, then a cosine down to a floor.
///
///   lr(k) = peak (k + 1) / warmup                                    k < warmup
///   lr(k) = floor + (peak - floor) (1 + cos(pi u)) / 2,  u = (k - warmup) / (steps - warmup)
///
/// Steps count from 0; from `steps` on the rate stays at the floor.
struct Schedule {
  double peak = 1e-3;
  double floor = 0;
  int64_t warmup = 0;
  int64_t steps = 1;

  double learning_rate(int64_t step) const {
    if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
    if (step >= steps) return floor;
    const double u = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
    return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * u));
  }
};

}  // namespace braid
