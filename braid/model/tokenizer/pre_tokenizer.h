#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "braid/model/tokenizer/regex.h"

namespace braid::tok {

/// What becomes of the matches of a pattern when a text is split at them.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // the pieces between matches count as the matches
};
/// Writes spaces as `replacement`, puts one in front, and splits before each.
struct Metaspace {
  enum class Prefix { kAlways, kFirst, kNever };
  std::string replacement;
  Prefix prefix = Prefix::kAlways;
  std::optional<Split> split;
};
/// A space is put before every piece that does not start with one.
struct PrefixSpace {};

using PreTokenizerStep = std::variant<Split, Metaspace, PrefixSpace>;

/// A text cut into words; no merge crosses the end of a word.
struct Words {
  std::string text;           // as the steps rewrote it
  std::vector<Range> ranges;  // non-empty, in order
};

/// Immutable, safe to share between threads.
class PreTokenizer {
 public:
  void add(PreTokenizerStep step) { steps_.push_back(std::move(step)); }
  /// `text` is well-formed UTF-8; `at_start` says that it begins where the whole input does.
  Words apply(std::string text, bool at_start) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

/// The pattern that a ByteLevel pre-tokenizer with `use_regex` splits by (that of GPT-2).
extern const char* const kByteLevelPattern;

}  // namespace braid::tok
