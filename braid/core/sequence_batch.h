#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid {

/// A packed batch: the tokens of all sequences lie end to end, without padding.
///
/// Sequence s owns rows [offsets[s], offsets[s + 1]) of every (N, D) tensor, and its first row is
/// token starts[s] of that sequence (0 where it begins). One decode step of S sequences is a batch
/// whose lengths are all 1.
struct SequenceBatch {
  std::vector<int64_t> offsets{0};  // (S + 1), rising from 0 to N
  std::vector<int64_t> starts;      // (S), absolute positions

  int64_t sequences() const { return static_cast<int64_t>(starts.size()); }
  int64_t tokens() const { return offsets.back(); }
  int64_t length(int64_t s) const {
    return offsets[static_cast<size_t>(s) + 1] - offsets[static_cast<size_t>(s)];
  }
  void add(int64_t length, int64_t start = 0) {
    offsets.push_back(offsets.back() + length);
    starts.push_back(start);
  }
  static SequenceBatch single(int64_t length, int64_t start = 0) {
    SequenceBatch batch;
    batch.add(length, start);
    return batch;
  }
};

}  // namespace braid
