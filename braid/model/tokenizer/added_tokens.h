#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "braid/model/tokenizer/byte_trie.h"
#include "braid/model/tokenizer/regex.h"

namespace braid::tok {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool normalized = false;              // looked for in the normalized text, not in the raw one
  bool single_word = false;             // only between characters that are no word characters
  bool lstrip = false, rstrip = false;  // takes the white space before, after it
};

/// Finds added tokens in a text: leftmost, then longest. Immutable, safe to share.
class AddedTokens {
 public:
  struct Part {
    Range range;
    int32_t id;  // -1: text between tokens
  };
  /// `content` is what is looked for: normalized if the token is.
  void add(std::string_view content, const AddedToken& token);
  /// Parts in order; no text part is empty.
  std::vector<Part> split(std::string_view text) const;

 private:
  std::vector<AddedToken> tokens_;
  ByteTrie trie_;  // content -> index into tokens_
};

}  // namespace braid::tok
