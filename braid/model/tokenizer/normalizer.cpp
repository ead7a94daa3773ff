#include "braid/model/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "braid/core/error.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

utf8proc_option_t option_of(UnicodeForm form) {
  const int composed = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  const int decomposed = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  switch (form) {
    case UnicodeForm::kNfc:
      return static_cast<utf8proc_option_t>(composed);
    case UnicodeForm::kNfd:
      return static_cast<utf8proc_option_t>(decomposed);
    case UnicodeForm::kNfkc:
      return static_cast<utf8proc_option_t>(composed | UTF8PROC_COMPAT);
    default:
      return static_cast<utf8proc_option_t>(decomposed | UTF8PROC_COMPAT);
  }
}

std::string apply(UnicodeForm form, std::string text) {
  if (is_ascii(text)) return text;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, option_of(form));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  check(size >= 0, ErrorKind::kResource, "normalizer: {}", utf8proc_errmsg(size));
  return {reinterpret_cast<const char*>(mapped), static_cast<size_t>(size)};
}

std::string apply(const Prepend& step, std::string text) {
  if (!text.empty()) text.insert(0, step.text);
  return text;
}

std::string apply(const ReplaceText& step, std::string text) {
  return replace_all(text, step.from, step.to);
}

std::string apply(const ReplacePattern& step, std::string text) {
  Regex::Search search(step.from);
  std::string out;
  size_t done = 0;
  search.for_each(text, [&](const Range& match) {
    out.append(text, done, match.begin - done);
    out += step.to;
    done = match.end;
  });
  out.append(text, done);
  return out;
}

std::string apply(const StripSpace& step, std::string text) {
  size_t begin = 0, end = text.size();
  if (step.left) {
    for (size_t at = 0; at < text.size() && is_space(next_code_point(text, at));) begin = at;
  }
  while (step.right && end > begin) {
    size_t start = end - 1;
    while ((text[start] & 0xC0) == 0x80) --start;
    size_t at = start;
    if (!is_space(next_code_point(text, at))) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

std::string apply(const Lowercase&, std::string text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const uint32_t c = next_code_point(text, i);
    if (c == 0x130) {  // the only code point whose full lowercase is two
      out += "i\xCC\x87";
    } else {
      append_code_point(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))),
                        out);
    }
  }
  return out;
}

std::string apply(const StripAccents&, std::string text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    if (!is_mark(next_code_point(text, i))) out.append(text, begin, i - begin);
  }
  return out;
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done));
    out += to;
    done = at + from.size();
  }
  out.append(text.substr(done));
  return out;
}

std::string Normalizer::apply(std::string_view text) const {
  const size_t bytes_max = 32 * text.size() + 4096;
  std::string out(text);
  for (const NormalizerStep& step : steps_) {
    out = std::visit([&](const auto& s) { return tok::apply(s, std::move(out)); }, step);
    check(out.size() <= bytes_max, ErrorKind::kResource,
          "normalizer: {} bytes of text became {}, at most {} are read", text.size(), out.size(),
          bytes_max);
  }
  return out;
}

}  // namespace braid::tok
