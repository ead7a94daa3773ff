#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "braid/model/tokenizer/regex.h"

namespace braid::tok {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
struct Prepend {  // nothing is put before an empty text
  std::string text;
};
struct ReplaceText {
  std::string from, to;
};
struct ReplacePattern {
  Regex from;
  std::string to;
};
struct StripSpace {
  bool left = true, right = true;
};
struct Lowercase {};     // full mapping of each code point, without context
struct StripAccents {};  // removes all marks; the text is decomposed before

using NormalizerStep = std::variant<UnicodeForm, Prepend, ReplaceText, ReplacePattern, StripSpace,
                                    Lowercase, StripAccents>;

/// Rewrites well-formed UTF-8 step by step. Immutable, safe to share between threads.
class Normalizer {
 public:
  void add(NormalizerStep step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }
  /// Throws Error(kResource) if the text grows beyond 32 times its length.
  std::string apply(std::string_view text) const;

 private:
  std::vector<NormalizerStep> steps_;
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace braid::tok
