#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "braid/core/rng.h"

namespace braid {

/// Numbers drawn one after another from a stream of the counter-based generator.
class Draws {
 public:
  explicit Draws(const Rng& rng) : rng_(rng) {}

  /// 0..bound-1.
  int32_t below(int64_t bound) {
    return static_cast<int32_t>(rng_.below(next_++, static_cast<uint64_t>(bound)));
  }
  /// In (0, 1), 53 bits.
  double uniform() {
    const auto bits = rng_.block(next_++);
    const uint64_t word = (uint64_t{bits[0]} << 32 | bits[1]) >> 11;
    return (static_cast<double>(word) + 0.5) * 0x1p-53;
  }
  /// `count` of 0..bound-1, all different, in random order. O(bound).
  std::vector<int32_t> distinct(int64_t bound, int64_t count) {
    std::vector<int32_t> all(static_cast<size_t>(bound));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < count; ++i) {
      std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + below(bound - i))]);
    }
    all.resize(static_cast<size_t>(count));
    return all;
  }

 private:
  Rng rng_;
  uint64_t next_ = 0;
};

}  // namespace braid
