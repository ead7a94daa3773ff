#include "braid/model/tokenizer/pre_tokenizer.h"

#include "braid/model/tokenizer/normalizer.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {
namespace {

struct Part {
  Range range;
  bool is_match;
};

void append_part(std::vector<Part>& parts, const Part& part, SplitBehavior behavior) {
  Part* last = parts.empty() ? nullptr : &parts.back();
  const bool joins_last =
      last &&
      ((behavior == SplitBehavior::kContiguous && last->is_match == part.is_match) ||
       (behavior == SplitBehavior::kMergedWithPrevious && part.is_match && !last->is_match) ||
       (behavior == SplitBehavior::kMergedWithNext && last->is_match && !part.is_match));
  if (!joins_last) {
    parts.push_back(part);
    return;
  }
  last->range.end = part.range.end;
  // What a match has been merged with takes no second one.
  last->is_match = behavior == SplitBehavior::kContiguous
                       ? part.is_match
                       : behavior == SplitBehavior::kMergedWithPrevious;
}

void split_word(const Split& step, Regex::Search& search, const std::string& text, Range word,
                std::vector<Part>& parts, std::vector<Range>& out) {
  const std::string_view subject(text.data() + word.begin, word.end - word.begin);
  parts.clear();
  const auto add = [&](size_t begin, size_t end, bool is_match) {
    append_part(parts, {{word.begin + begin, word.begin + end}, is_match != step.invert},
                step.behavior);
  };
  size_t done = 0;
  search.for_each(subject, [&](const Range& match) {
    if (match.begin > done) add(done, match.begin, false);
    add(match.begin, match.end, true);
    done = match.end;
  });
  if (done < subject.size()) add(done, subject.size(), false);
  for (const Part& part : parts) {
    const bool removed = step.behavior == SplitBehavior::kRemoved && part.is_match;
    if (!removed && part.range.begin < part.range.end) out.push_back(part.range);
  }
}

void apply(const Split& step, Words& words, bool) {
  Regex::Search search(step.pattern);
  std::vector<Part> parts;
  std::vector<Range> ranges;
  for (const Range& word : words.ranges) {
    split_word(step, search, words.text, word, parts, ranges);
  }
  words.ranges = std::move(ranges);
}

// Writes every word anew: `write(word, index, out)` appends it.
template <class Write>
void rewrite(Words& words, const Write& write) {
  std::string out;
  out.reserve(words.text.size() + words.ranges.size());
  for (size_t i = 0; i < words.ranges.size(); ++i) {
    Range& range = words.ranges[i];
    const size_t begin = out.size();
    write(std::string_view(words.text).substr(range.begin, range.end - range.begin), i, out);
    range = {begin, out.size()};
  }
  words.text = std::move(out);
}

void apply(const Metaspace& step, Words& words, bool at_start) {
  const bool first_word_is_first = at_start && !words.ranges.empty() && words.ranges[0].begin == 0;
  rewrite(words, [&](std::string_view word, size_t i, std::string& out) {
    const std::string replaced = replace_all(word, " ", step.replacement);
    const bool wanted = step.prefix == Metaspace::Prefix::kAlways ||
                        (step.prefix == Metaspace::Prefix::kFirst && i == 0 && first_word_is_first);
    if (wanted && !replaced.starts_with(step.replacement)) out += step.replacement;
    out += replaced;
  });
  if (step.split) apply(*step.split, words, at_start);
}

void apply(const PrefixSpace&, Words& words, bool) {
  rewrite(words, [](std::string_view word, size_t, std::string& out) {
    if (!word.starts_with(' ')) out += ' ';
    out += word;
  });
}

}  // namespace

const char* const kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Words PreTokenizer::apply(std::string text, bool at_start) const {
  Words words;
  words.text = std::move(text);
  if (!words.text.empty()) words.ranges.push_back({0, words.text.size()});
  for (const PreTokenizerStep& step : steps_) {
    std::visit([&](const auto& s) { tok::apply(s, words, at_start); }, step);
  }
  return words;
}

}  // namespace braid::tok
