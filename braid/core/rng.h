#pragma once

#include <array>
#include <cstdint>

namespace braid {

/// Counter-based generator (Philox 4x32-10, Salmon et al., SC 2011): the i-th number of a stream is
/// a pure function of (seed, stream, i), so that a resumed run, another thread count or another
/// order of evaluation draws the same numbers.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  std::array<uint32_t, 4> block(uint64_t index) const;
  /// In [0, 1), 24 bits.
  float uniform(uint64_t index) const;
  /// Standard normal (Box-Muller).
  float normal(uint64_t index) const;
  /// In [0, bound), without modulo bias beyond 2^-64.
  uint64_t below(uint64_t index, uint64_t bound) const;

  /// An independent stream for a named purpose.
  Rng fork(uint64_t stream) const;
  uint64_t seed() const { return seed_; }

 private:
  uint64_t seed_, stream_;
};

}  // namespace braid
