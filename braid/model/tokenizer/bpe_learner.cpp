#include "braid/model/tokenizer/bpe_learner.h"

#include "braid/core/error.h"

namespace braid::tok {
namespace {

constexpr size_t kWordBytesMax = size_t{1} << 30;

}  // namespace

void BpeLearner::add_word(std::string_view word, int64_t count) {
  check(word.size() <= kWordBytesMax, ErrorKind::kResource,
        "tokenizer train: a word of {} bytes, at most {} are read", word.size(), kWordBytesMax);
  if (word.size() < 2) return;  // holds no pair
  words_.push_back({symbols_.size(), static_cast<uint32_t>(word.size()), count});
  for (const unsigned char byte : word) symbols_.push_back(byte);
}

std::string BpeLearner::bytes_of(int32_t id) const {
  return id < first_id_ ? std::string(1, static_cast<char>(id))
                        : tokens_[static_cast<size_t>(id - first_id_)];
}

int32_t BpeLearner::id_of(const Pair& pair) {
  std::string bytes = bytes_of(pair.left) + bytes_of(pair.right);
  const auto next = first_id_ + static_cast<int32_t>(tokens_.size());
  const auto [found, added] = ids_.emplace(bytes, next);
  if (added) tokens_.push_back(std::move(bytes));
  return found->second;
}

uint32_t BpeLearner::find_pair(int32_t left, int32_t right) {
  bool added = false;
  const uint64_t index = pair_index_.insert(static_cast<uint32_t>(left),
                                            static_cast<uint32_t>(right), pairs_.size(), &added);
  if (added)
    pairs_.push_back({.left = left, .right = right, .count = 0, .merged = false, .words = {}});
  return static_cast<uint32_t>(index);
}

void BpeLearner::count_pair(int32_t left, int32_t right, uint32_t word, int64_t change) {
  const uint32_t index = find_pair(left, right);
  Pair& pair = pairs_[index];
  pair.count += change;
  if (change < 0) return;
  if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
  grown_.push_back(index);
}

void BpeLearner::push(uint32_t index) {
  const Pair& pair = pairs_[index];
  if (pair.count > 1) queue_.push({pair.count, pair.left, pair.right, index});
}

void BpeLearner::merge_in_word(const Word& word, uint32_t index, int32_t left, int32_t right,
                               int32_t id) {
  int32_t* symbols = symbols_.data() + word.begin;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < word.size;) {
    if (symbols[i] != left || i + 1 == word.size || symbols[i + 1] != right) {
      symbols[kept++] = symbols[i++];
      continue;
    }
    // The neighbour on the left is already as this merge leaves it, so that the pair which the
    // previous occurrence has just counted is taken back here.
    if (kept > 0) {
      count_pair(symbols[kept - 1], left, index, -word.count);
      count_pair(symbols[kept - 1], id, index, word.count);
    }
    if (i + 2 < word.size) {
      count_pair(right, symbols[i + 2], index, -word.count);
      count_pair(id, symbols[i + 2], index, word.count);
    }
    symbols[kept++] = id;
    i += 2;
  }
  words_[index].size = kept;
}

void BpeLearner::apply_merge(uint32_t index) {
  const int32_t left = pairs_[index].left, right = pairs_[index].right;
  const int32_t id = id_of(pairs_[index]);
  const std::vector<uint32_t> holders = std::move(pairs_[index].words);
  pairs_[index].words.clear();
  for (const uint32_t w : holders) merge_in_word(words_[w], w, left, right, id);
  pairs_[index].count = 0;
}

void BpeLearner::learn_merge(uint32_t index) {
  merges_.emplace_back(pairs_[index].left, pairs_[index].right);
  pairs_[index].merged = true;
  grown_.clear();
  apply_merge(index);
  // Where a token can be made in two ways, a pair that has merged before may come back. It has the
  // lower rank, so that an encoder merges it at once.
  for (size_t i = 0; i < grown_.size(); ++i) {
    const uint32_t grown = grown_[i];
    if (pairs_[grown].merged && pairs_[grown].count > 0) apply_merge(grown);
  }
  for (const uint32_t grown : grown_) push(grown);
}

void BpeLearner::learn(int32_t tokens, const std::function<void(double)>& progress) {
  for (uint32_t w = 0; w < words_.size(); ++w) {
    const int32_t* symbols = symbols_.data() + words_[w].begin;
    for (uint32_t i = 0; i + 1 < words_[w].size; ++i) {
      count_pair(symbols[i], symbols[i + 1], w, words_[w].count);
    }
    grown_.clear();
  }
  for (uint32_t i = 0; i < pairs_.size(); ++i) push(i);
  const auto want = static_cast<size_t>(tokens);
  while (tokens_.size() < want && !queue_.empty()) {
    const Candidate top = queue_.top();
    queue_.pop();
    if (pairs_[top.pair].count != top.count) {  // counts have fallen since
      if (pairs_[top.pair].count < top.count) push(top.pair);
      continue;
    }
    learn_merge(top.pair);
    if (progress) progress(static_cast<double>(tokens_.size()) / static_cast<double>(want));
  }
}

}  // namespace braid::tok
