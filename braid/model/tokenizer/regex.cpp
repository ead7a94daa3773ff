#define PCRE2_CODE_UNIT_WIDTH 8
#include "braid/model/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

#include "braid/core/error.h"
#include "braid/model/json.h"

namespace braid::tok {
namespace {

constexpr size_t kPatternBytesMax = 1 << 14;

// Backtracks allowed to one search. A run of n spaces costs ordinary patterns a few times n.
uint32_t backtracks_max(size_t text_bytes) {
  return static_cast<uint32_t>(1'000'000 + 16 * std::min<size_t>(text_bytes, 100'000'000));
}

constexpr std::string_view kSpace =
    R"(\t-\r\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
// Alphabetic (circled letters are symbols that are), marks, decimal digits, connectors.
constexpr std::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149})"
    R"(\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";

std::string reason(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// Rewrites one escape at pattern[i] (the backslash) and returns how many characters it took.
size_t translate_escape(std::string_view pattern, size_t i, bool in_class, std::string& out) {
  check(i + 1 < pattern.size(), ErrorKind::kFormat, "regex {}: ends with a backslash",
        quote(pattern));
  const char c = pattern[i + 1];
  check(c != 'h' && c != 'H', ErrorKind::kUnsupported, "regex {}: \\{} at offset {} is not read",
        quote(pattern), c, i);
  const bool space = c == 's' || c == 'S', word = c == 'w' || c == 'W';
  const bool negative = c == 'S' || c == 'W';
  if ((!space && !word) || (in_class && negative)) {
    out.append(pattern.substr(i, 2));
  } else {
    const std::string_view set = space ? kSpace : kWord;
    if (in_class) {
      out += set;
    } else {
      out += negative ? "[^" : "[";
      out += set;
      out += ']';
    }
  }
  return 2;
}

std::string translate(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  size_t class_begin = 0;
  for (size_t i = 0; i < pattern.size();) {
    const char c = pattern[i];
    if (c == '\\') {
      i += translate_escape(pattern, i, in_class, out);
      continue;
    }
    if (in_class) {
      const bool posix = c == '[' && pattern.substr(i + 1, 1) == ":";
      check(posix || c != '[', ErrorKind::kUnsupported,
            "regex {}: a class within a class at offset {} is not read", quote(pattern), i);
      check(c != '&' || pattern.substr(i + 1, 1) != "&", ErrorKind::kUnsupported,
            "regex {}: && of classes at offset {} is not read", quote(pattern), i);
      if (posix) {
        const size_t end = pattern.find(":]", i + 2);
        check(end != pattern.npos, ErrorKind::kFormat, "regex {}: [: at offset {} has no :]",
              quote(pattern), i);
        out.append(pattern.substr(i, end + 2 - i));
        i = end + 2;
        continue;
      }
      if (c == ']' && i > class_begin) in_class = false;
    } else if (c == '[') {
      in_class = true;
      class_begin = i + (pattern.substr(i + 1, 1) == "^" ? 2 : 1);  // a first ] is itself
      out.append(pattern.substr(i, class_begin - i));
      i = class_begin;
      continue;
    }
    out += c;
    ++i;
  }
  return out;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code;
  explicit Code(pcre2_code* c) : code(c) {}
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

struct Regex::Search::Memory {
  pcre2_match_data* match = nullptr;
  pcre2_match_context* limits = nullptr;
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(limits);
  }
};

Regex::Regex(std::string_view pattern) : pattern_(pattern) {
  check(pattern.size() <= kPatternBytesMax, ErrorKind::kFormat,
        "regex: the pattern has {} bytes, at most {} are read", pattern.size(), kPatternBytesMax);
  const std::string translated = translate(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // In Oniguruma's syntax ^ and $ are the ends of lines.
  const uint32_t options =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                   translated.size(), options, &error, &offset, nullptr);
  check(code != nullptr, ErrorKind::kFormat, "regex {}: {}", quote(pattern), reason(error));
  code_ = std::make_shared<const Code>(code);
  // Where there is no just-in-time compiler the interpreter gives the same matches.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

Regex Regex::literal(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain =
        byte >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (plain) {
      pattern += c;
    } else {
      pattern += fmt::format("\\x{:02x}", byte);
    }
  }
  return Regex(pattern);
}

Regex::Search::Search(const Regex& regex) : regex_(&regex), memory_(std::make_shared<Memory>()) {
  memory_->match = pcre2_match_data_create(1, nullptr);
  memory_->limits = pcre2_match_context_create(nullptr);
  check(memory_->match && memory_->limits, ErrorKind::kResource, "regex: out of memory");
}

std::optional<Range> Regex::Search::next(std::string_view text, size_t offset) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  const pcre2_code* code = regex_->code_->code;
  pcre2_set_match_limit(memory_->limits, backtracks_max(text.size()));
  int count = pcre2_match(code, subject, text.size(), offset, PCRE2_NO_UTF_CHECK, memory_->match,
                          memory_->limits);
  if (count == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
    count = pcre2_match(code, subject, text.size(), offset, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        memory_->match, memory_->limits);
  }
  if (count == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (count < 0) {
    fail(ErrorKind::kResource, "regex {}: {} at byte {} of the text", quote(regex_->pattern_),
         reason(count), offset);
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(memory_->match);
  // \K inside a lookaround may put the start behind the end.
  if (ends[0] > ends[1] || ends[0] < offset) {
    fail(ErrorKind::kFormat, "regex {}: a match ends before it starts", quote(regex_->pattern_));
  }
  return Range{ends[0], ends[1]};
}

}  // namespace braid::tok
