#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid::tok {

/// A hash map from a pair of 32-bit numbers to one 64-bit number: open addressing, linear probing,
/// at most half full, no removal. The pair (0xFFFFFFFF, 0xFFFFFFFF) may not be a key.
class PairMap {
 public:
  explicit PairMap(size_t expected = 0) { rehash(std::bit_ceil(2 * expected + 16)); }

  const uint64_t* find(uint32_t a, uint32_t b) const {
    const uint64_t key = join(a, b);
    for (size_t i = slot(key);; i = (i + 1) & mask_) {
      if (entries_[i].key == key) return &entries_[i].value;
      if (entries_[i].key == kEmpty) return nullptr;
    }
  }
  /// The value of the pair, which is added with `initial` if it was not there; `added` tells.
  /// The reference lasts until the next insertion.
  uint64_t& insert(uint32_t a, uint32_t b, uint64_t initial, bool* added = nullptr) {
    if (2 * (size_ + 1) > entries_.size()) rehash(2 * entries_.size());
    const uint64_t key = join(a, b);
    size_t i = slot(key);
    while (entries_[i].key != key && entries_[i].key != kEmpty) i = (i + 1) & mask_;
    const bool is_new = entries_[i].key == kEmpty;
    if (is_new) {
      entries_[i] = {key, initial};
      ++size_;
    }
    if (added) *added = is_new;
    return entries_[i].value;
  }
  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Entry {
    uint64_t key = kEmpty, value = 0;
  };
  std::vector<Entry> entries_;
  size_t size_ = 0, mask_ = 0;

  static uint64_t join(uint32_t a, uint32_t b) { return (uint64_t{a} << 32) | b; }
  size_t slot(uint64_t key) const {
    key *= 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio
    return (key ^ (key >> 32)) & mask_;
  }
  void rehash(size_t capacity) {
    std::vector<Entry> old(capacity);
    old.swap(entries_);
    mask_ = capacity - 1;
    for (const Entry& entry : old) {
      if (entry.key == kEmpty) continue;
      size_t i = slot(entry.key);
      while (entries_[i].key != kEmpty) i = (i + 1) & mask_;
      entries_[i] = entry;
    }
  }
};

}  // namespace braid::tok
