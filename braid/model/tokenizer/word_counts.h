#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace braid::tok {

/// How often each word occurs. The words are views: their text outlives the counts.
class WordCounts {
 public:
  void add(std::string_view word, int64_t count) {
    if (2 * (size_ + 1) > entries_.size()) grow();
    Entry& entry = slot(word);
    if (entry.count == 0) {
      entry.word = word;
      ++size_;
    }
    entry.count += count;
  }
  size_t size() const { return size_; }
  /// In no particular order.
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (const Entry& entry : entries_) {
      if (entry.count > 0) visit(entry.word, entry.count);
    }
  }

 private:
  struct Entry {
    std::string_view word;
    int64_t count = 0;
  };
  std::vector<Entry> entries_{std::vector<Entry>(1024)};
  size_t size_ = 0;

  Entry& slot(std::string_view word) {
    const size_t mask = entries_.size() - 1;
    size_t i = std::hash<std::string_view>{}(word)&mask;
    while (entries_[i].count > 0 && entries_[i].word != word) i = (i + 1) & mask;
    return entries_[i];
  }
  void grow() {
    std::vector<Entry> old(2 * entries_.size());
    old.swap(entries_);
    for (const Entry& entry : old) {
      if (entry.count > 0) slot(entry.word) = entry;
    }
  }
};

}  // namespace braid::tok
