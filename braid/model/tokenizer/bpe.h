#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "braid/model/tokenizer/pair_map.h"

namespace braid::tok {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

/// The alphabet of byte-level vocabularies: each byte is written as one printable character
/// (itself if it has one in Latin-1, else U+0100 and up), as in GPT-2.
class ByteAlphabet {
 public:
  ByteAlphabet();
  const std::string& character(unsigned char byte) const { return characters_[byte]; }
  /// The bytes that `token` stands for; none if a character is not of the alphabet.
  std::optional<std::string> bytes_of(std::string_view token) const;

 private:
  std::array<std::string, 256> characters_;
  std::array<int16_t, 512> bytes_;  // by code point; -1: not in the alphabet
};

struct BpeOptions {
  bool byte_level = false;     // words are bytes, the vocabulary is written in ByteAlphabet
  bool byte_fallback = false;  // an unknown character becomes its bytes' tokens "<0xNN>"
  bool fuse_unk = false;       // a run of unknown characters becomes one unknown token
  bool ignore_merges = false;  // a word that is a token needs no merges to be one
  std::optional<int32_t> unk;
};

/// Byte pair encoding: of all neighbours that may merge, those of the lowest rank do, leftmost
/// first, until none is left (Sennrich et al., arXiv:1508.07909). O(n log n) in the length of a
/// word. Immutable, safe to share between threads.
class Bpe {
 public:
  using Merges = std::vector<std::pair<std::string, std::string>>;
  /// Ids are below 2^31. Throws Error(kFormat) if a merge names something that is no token.
  Bpe(Vocabulary vocabulary, const Merges& merges, const BpeOptions& options);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  /// Appends the tokens of one word. Throws Error(kFormat) for a character without a token if the
  /// model has no unknown token.
  void encode(std::string_view word, std::vector<int32_t>& out) const;

 private:
  Vocabulary vocabulary_;
  Vocabulary byte_words_;           // byte level with ignore_merges: raw bytes -> id
  std::array<int32_t, 256> bytes_;  // byte level: of the byte; else of "<0xNN>"; -1: none
  bool has_every_byte_ = false;
  PairMap merges_;  // (left, right) -> rank << 32 | merged
  BpeOptions options_;

  void split(std::string_view word, std::vector<int32_t>& out) const;
  int32_t find_symbol(std::string_view symbol) const;
  bool append_bytes(std::string_view symbol, std::vector<int32_t>& out) const;
  void merge_by_scan(std::vector<int32_t>& out, size_t begin) const;
  void merge_by_heap(std::vector<int32_t>& out, size_t begin) const;
};

}  // namespace braid::tok
