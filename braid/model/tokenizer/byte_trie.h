#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "braid/model/tokenizer/pair_map.h"

namespace braid::tok {

/// Strings of bytes, each with a number, found by the longest that starts at a place of a text.
class ByteTrie {
 public:
  struct Match {
    int32_t value = -1;  // -1: none
    size_t length = 0;
  };

  ByteTrie() { roots_.fill(kNone); }

  /// False if the string is empty or already there.
  bool insert(std::string_view bytes, int32_t value) {
    if (bytes.empty()) return false;
    uint32_t& root = roots_[static_cast<unsigned char>(bytes[0])];
    if (root == kNone) root = add_node();
    uint32_t node = root;
    for (const unsigned char byte : bytes.substr(1)) {
      bool added = false;
      const uint64_t next = children_.insert(node, byte, values_.size(), &added);
      if (added) add_node();
      node = static_cast<uint32_t>(next);
    }
    if (values_[node] >= 0) return false;
    values_[node] = value;
    return true;
  }

  Match longest(std::string_view text) const {
    Match best;
    if (text.empty()) return best;
    uint32_t node = roots_[static_cast<unsigned char>(text[0])];
    for (size_t length = 1; node != kNone; ++length) {
      if (values_[node] >= 0) best = {values_[node], length};
      if (length == text.size()) break;
      const uint64_t* next = children_.find(node, static_cast<unsigned char>(text[length]));
      node = next ? static_cast<uint32_t>(*next) : kNone;
    }
    return best;
  }

  bool empty() const { return values_.empty(); }
  bool may_start(char byte) const { return roots_[static_cast<unsigned char>(byte)] != kNone; }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  std::array<uint32_t, 256> roots_;
  std::vector<int32_t> values_;  // by node
  PairMap children_;             // (node, byte) -> node

  uint32_t add_node() {
    values_.push_back(-1);
    return static_cast<uint32_t>(values_.size() - 1);
  }
};

}  // namespace braid::tok
