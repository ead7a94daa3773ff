#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {

struct Range {
  size_t begin = 0, end = 0;
  bool operator==(const Range&) const = default;
};

/// A pattern of a tokenizer file over UTF-8 text. Such patterns are written for Oniguruma with
/// Unicode classes; they run on PCRE2 with the classes \s and \w spelled out, because the two
/// engines do not agree on them. Constructs that mean different things to both are refused.
/// Immutable; one Search per thread.
class Regex {
 public:
  /// Throws Error(kFormat) with PCRE2's reason and the offset of the fault.
  explicit Regex(std::string_view pattern);
  /// A pattern that matches `text` itself.
  static Regex literal(std::string_view text);

  /// Scratch memory for searches.
  class Search {
   public:
    explicit Search(const Regex& regex);
    /// The first match at or after `offset` of well-formed `text`. Throws Error(kResource) when
    /// the pattern backtracks beyond a fixed limit.
    std::optional<Range> next(std::string_view text, size_t offset);
    /// Calls visit(Range) for all matches in order. None overlaps another, and an empty one does
    /// not come right after another.
    template <class Visit>
    void for_each(std::string_view text, const Visit& visit) {
      size_t at = 0;
      std::optional<size_t> last_end;
      while (at <= text.size()) {
        const std::optional<Range> match = next(text, at);
        if (!match) break;
        at = match->end;
        const bool empty = match->begin == match->end;
        if (!empty || match->end != last_end) visit(*match);
        last_end = match->end;
        if (empty) {
          if (at == text.size()) break;
          at += sequence_length(static_cast<unsigned char>(text[at]));
        }
      }
    }

   private:
    struct Memory;
    const Regex* regex_;
    std::shared_ptr<Memory> memory_;
  };

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string pattern_;
};

}  // namespace braid::tok
