#include "braid/model/tokenizer/added_tokens.h"

#include <algorithm>

#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {
namespace {

size_t previous_start(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return start;
}

uint32_t code_point_before(std::string_view text, size_t end) {
  size_t at = previous_start(text, end);
  return next_code_point(text, at);
}

bool is_between_words(std::string_view text, Range match) {
  if (match.begin > 0 && is_word(code_point_before(text, match.begin))) return false;
  size_t at = match.end;
  return match.end == text.size() || !is_word(next_code_point(text, at));
}

}  // namespace

void AddedTokens::add(std::string_view content, const AddedToken& token) {
  if (trie_.insert(content, static_cast<int32_t>(tokens_.size()))) tokens_.push_back(token);
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !trie_.empty();) {
    if (!trie_.may_start(text[at])) {
      ++at;
      continue;
    }
    const ByteTrie::Match match = trie_.longest(text.substr(at));
    if (match.value < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(match.value)];
    Range range{at, at + match.length};
    at = range.end;  // a match that is not taken still hides those that overlap it
    if (token.single_word && !is_between_words(text, range)) continue;
    while (token.lstrip && range.begin > done && is_space(code_point_before(text, range.begin))) {
      range.begin = previous_start(text, range.begin);
    }
    for (size_t next = range.end; token.rstrip && next < text.size();) {
      if (!is_space(next_code_point(text, next))) break;
      range.end = next;
    }
    at = range.end;
    if (range.begin > done) parts.push_back({{done, range.begin}, -1});
    parts.push_back({range, token.id});
    done = range.end;
  }
  if (done < text.size()) parts.push_back({{done, text.size()}, -1});
  return parts;
}

}  // namespace braid::tok
