#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "braid/model/tokenizer/pair_map.h"

namespace braid::tok {

/// The merges of byte pair encoding, learned from counted words of bytes.
class BpeLearner {
 public:
  /// The first id that a merge makes; smaller ones that are no byte are the caller's.
  explicit BpeLearner(int32_t first_id) : first_id_(first_id) {}

  void add_word(std::string_view word, int64_t count);
  /// Learns until there are `tokens` new tokens or no pair occurs twice. Once only.
  void learn(int32_t tokens, const std::function<void(double)>& progress);

  /// By id - first_id: the bytes of each new token.
  const std::vector<std::string>& tokens() const { return tokens_; }
  /// In the order of their ranks. Two merges may make the same token.
  const std::vector<std::pair<int32_t, int32_t>>& merges() const { return merges_; }

 private:
  struct Word {
    size_t begin;  // into symbols_
    uint32_t size;
    int64_t count;
  };
  struct Pair {
    int32_t left, right;
    int64_t count = 0;
    bool merged = false;
    std::vector<uint32_t> words;  // that may hold it, some of them twice
  };
  struct Candidate {
    int64_t count;  // when it was put into the queue
    int32_t left, right;
    uint32_t pair;
    bool operator<(const Candidate& o) const {  // the top of the queue is the greatest
      if (count != o.count) return count < o.count;
      return std::pair(left, right) > std::pair(o.left, o.right);
    }
  };
  int32_t first_id_;
  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  PairMap pair_index_;
  std::vector<Pair> pairs_;
  std::priority_queue<Candidate> queue_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> tokens_;
  std::vector<std::pair<int32_t, int32_t>> merges_;
  std::vector<uint32_t> grown_;  // pairs whose count the current merge raised

  std::string bytes_of(int32_t id) const;
  int32_t id_of(const Pair& pair);
  uint32_t find_pair(int32_t left, int32_t right);
  void count_pair(int32_t left, int32_t right, uint32_t word, int64_t change);
  void push(uint32_t pair);
  void merge_in_word(const Word& word, uint32_t index, int32_t left, int32_t right, int32_t id);
  void learn_merge(uint32_t pair);
  void apply_merge(uint32_t pair);
};

}  // namespace braid::tok
