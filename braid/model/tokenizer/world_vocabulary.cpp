#include <charconv>

#include "braid/core/error.h"
#include "braid/model/tokenizer/parts.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {
namespace {

constexpr size_t kTokenBytesMax = 4096;  // bounds the search at every byte of a text

// Reads a Python string or bytes literal: '...', "..." or b'...' with backslash escapes.
class PythonLiteral {
 public:
  PythonLiteral(std::string_view text, size_t line) : text_(text), line_(line) {}

  std::string parse() {
    is_bytes_ = text_.starts_with('b');
    at_ = is_bytes_ ? 1 : 0;
    want(at_ < text_.size() && (text_[at_] == '\'' || text_[at_] == '"'), "a quote");
    const char quote = text_[at_++];
    std::string out;
    while (true) {
      want(at_ < text_.size(), "a closing quote");
      const char c = text_[at_++];
      if (c == quote) break;
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
    want(at_ == text_.size(), "nothing after the literal");
    return out;
  }

 private:
  std::string_view text_;
  size_t line_, at_ = 0;
  bool is_bytes_ = false;

  void want(bool ok, std::string_view what) const {
    check(ok, ErrorKind::kFormat, "world vocabulary: line {}: want {} at offset {} of the literal",
          line_, what, at_);
  }

  void escape(std::string& out) {
    want(at_ < text_.size(), "an escape");
    const char c = text_[at_++];
    switch (c) {
      case '\\':
      case '\'':
      case '"':
        out += c;
        return;
      case 'n':
        out += '\n';
        return;
      case 't':
        out += '\t';
        return;
      case 'r':
        out += '\r';
        return;
      case 'x':
        return hexadecimal(2, out);
      case 'u':
        want(!is_bytes_, "no \\u in bytes");
        return hexadecimal(4, out);
      case 'U':
        want(!is_bytes_, "no \\U in bytes");
        return hexadecimal(8, out);
      default:
        want(false, "one of the escapes \\ ' \" n t r x u U");
    }
  }

  void hexadecimal(size_t digits, std::string& out) {
    want(at_ + digits <= text_.size(), "hexadecimal digits");
    uint32_t value = 0;
    const char* end = text_.data() + at_ + digits;
    const auto [stop, error] = std::from_chars(text_.data() + at_, end, value, 16);
    want(error == std::errc{} && stop == end, "hexadecimal digits");
    at_ += digits;
    if (is_bytes_) {
      out += static_cast<char>(value);
      return;
    }
    want(value <= 0x10FFFF && (value < 0xD800 || value > 0xDFFF), "a Unicode scalar value");
    append_code_point(value, out);
  }
};

int32_t parse_number(std::string_view text, size_t line, std::string_view what) {
  int32_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  check(error == std::errc{} && stop == end && value >= 0 && value < kIdsMax, ErrorKind::kFormat,
        "world vocabulary: line {}: {} is not a number from 0 to {}", line, what, kIdsMax - 1);
  return value;
}

// "ID LITERAL LENGTH"; the literal may hold spaces.
void parse_line(std::string_view text, size_t line, WorldModel& model, Detokenizer& table) {
  const size_t first = text.find(' '), last = text.rfind(' ');
  check(first != text.npos && first < last, ErrorKind::kFormat,
        "world vocabulary: line {} is not an id, a literal and a length", line);
  const int32_t id = parse_number(text.substr(0, first), line, "the id");
  const int32_t length = parse_number(text.substr(last + 1), line, "the length");
  const std::string token = PythonLiteral(text.substr(first + 1, last - first - 1), line).parse();
  check(token.size() == static_cast<size_t>(length), ErrorKind::kFormat,
        "world vocabulary: line {}: the literal has {} bytes, the line says {}", line, token.size(),
        length);
  check(!token.empty() && token.size() <= kTokenBytesMax, ErrorKind::kFormat,
        "world vocabulary: line {}: a token of {} bytes, want 1 to {}", line, token.size(),
        kTokenBytesMax);
  check(id != 0 && !table.has(id), ErrorKind::kFormat, "world vocabulary: line {}: id {} is taken",
        line, id);
  check(model.trie.insert(token, id), ErrorKind::kFormat,
        "world vocabulary: line {}: the token is listed twice", line);
  table.add_bytes(id, token, false);
}

}  // namespace

std::unique_ptr<Tokenizer::Parts> parse_world_vocabulary(std::string_view text) {
  auto parts = std::make_unique<Tokenizer::Parts>();
  WorldModel model;
  size_t line = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == text.npos) end = text.size();
    std::string_view row = text.substr(at, end - at);
    if (row.ends_with('\r')) row.remove_suffix(1);
    at = end + 1;
    ++line;
    if (!row.empty()) parse_line(row, line, model, parts->detokenizer);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    check(model.trie.longest({&c, 1}).value >= 0, ErrorKind::kFormat,
          "world vocabulary: no token for the single byte 0x{:02x}", byte);
  }
  // Id 0 is not listed: the RWKV models were trained with it between documents.
  parts->detokenizer.add_bytes(0, kEndOfDocument, true);
  parts->added_ids.emplace(kEndOfDocument, 0);
  parts->eos = parts->end_of_document = 0;
  parts->model = std::move(model);
  parts->fingerprint = hash_bytes(text);
  return parts;
}

}  // namespace braid::tok
