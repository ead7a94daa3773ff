#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "braid/model/tokenizer/bpe.h"
#include "braid/model/tokenizer/normalizer.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {

/// How tokens become text, in this order: each token is rewritten by `steps`, then read as bytes,
/// joined by `separator`, made well-formed, and stripped at the front.
struct DetokenizeRules {
  struct MetaspaceStep {
    std::string replacement;
    bool prefix;  // the first token loses its replacements instead of having them as spaces
  };
  struct StripStep {
    std::string content;
    size_t start = 0, stop = 0;
  };
  enum class Bytes { kNone, kByteLevel, kByteFallback };

  std::vector<std::variant<ReplaceText, MetaspaceStep, StripStep>> steps;
  Bytes bytes = Bytes::kNone;
  std::string separator;
  StripStep strip;  // `start` only
};

/// The text of every id. Immutable, safe to share between threads.
class Detokenizer {
 public:
  /// A token as raw bytes, after no rules.
  void add_bytes(int32_t id, std::string_view bytes, bool special);
  /// A token as it is written in the vocabulary.
  void add_token(int32_t id, std::string_view token, bool special);
  explicit Detokenizer(DetokenizeRules rules = {}) : rules_(std::move(rules)) {}

  /// Ids are in [0, size()), though not every one of them need be a token.
  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  bool has(int32_t id) const { return id >= 0 && id < size() && pieces_[index(id)].known; }
  bool is_special(int32_t id) const { return pieces_[index(id)].special; }
  const DetokenizeRules& rules() const { return rules_; }
  Utf8Stream::Replace replace() const {
    return rules_.bytes == DetokenizeRules::Bytes::kByteFallback ? Utf8Stream::Replace::kByte
                                                                 : Utf8Stream::Replace::kSequence;
  }
  const std::string& bytes(int32_t id, bool first) const {
    const Piece& piece = pieces_[index(id)];
    return first && piece.first ? *piece.first : piece.bytes;
  }

 private:
  struct Piece {
    std::string bytes;
    std::optional<std::string> first;  // if it differs at the start of a text
    bool known = false, special = false;
  };
  DetokenizeRules rules_;
  ByteAlphabet alphabet_;
  std::vector<Piece> pieces_;

  static size_t index(int32_t id) { return static_cast<size_t>(id); }
  std::string render(std::string_view token, bool first) const;
  Piece& at(int32_t id);
};

/// The text of ids that come one at a time. The detokenizer outlives it.
class TextBuilder {
 public:
  /// With `continuation` no rule for the start of a text applies.
  TextBuilder(const Detokenizer& tokens, bool skip_special, bool continuation);
  /// Appends what is complete to `out`. Throws Error(kUsage) for an id without a token.
  void push(int32_t id, std::string& out);
  void finish(std::string& out);

 private:
  const Detokenizer* tokens_;
  Utf8Stream utf8_;
  size_t strip_left_;  // characters that may still be taken from the front
  bool skip_special_, first_;

  void append(std::string_view text, std::string& out);
};

}  // namespace braid::tok
