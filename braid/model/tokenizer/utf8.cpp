#include "braid/model/tokenizer/utf8.h"

#include <utf8proc.h>

#include <cassert>
#include <cstring>

namespace braid::tok {
namespace {

enum class Form { kWell, kIll, kIncomplete };
struct Sequence {
  Form form;
  size_t length;  // of the character, or of the maximal subsequence that could have started one
};

unsigned char byte_at(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

// Reads one character at the start of non-empty `text`.
Sequence read_sequence(std::string_view text) {
  const unsigned char lead = byte_at(text, 0);
  if (lead < 0x80) return {Form::kWell, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Form::kIll, 1};
  // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  const size_t want = sequence_length(lead);
  for (size_t i = 1; i < want; ++i) {
    if (i >= text.size()) return {Form::kIncomplete, text.size()};
    if (byte_at(text, i) < low || byte_at(text, i) > high) return {Form::kIll, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Form::kWell, want};
}

}  // namespace

std::optional<size_t> invalid_utf8_offset(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t eight;
    while (i + sizeof eight <= text.size()) {
      std::memcpy(&eight, text.data() + i, sizeof eight);
      if (eight & 0x8080808080808080ULL) break;
      i += sizeof eight;
    }
    if (i == text.size()) break;
    const Sequence sequence = read_sequence(text.substr(i));
    if (sequence.form != Form::kWell) return i;
    i += sequence.length;
  }
  return std::nullopt;
}

uint32_t next_code_point(std::string_view text, size_t& offset) {
  const unsigned char lead = byte_at(text, offset);
  const size_t length = sequence_length(lead);
  assert(offset + length <= text.size());
  uint32_t code_point = length == 1 ? lead : lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (byte_at(text, offset + i) & 0x3F);
  }
  offset += length;
  return code_point;
}

void append_code_point(uint32_t code_point, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(n));
}

bool is_space(uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_mark(uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
         category == UTF8PROC_CATEGORY_ME;
}

bool is_word(uint32_t c) {
  const bool joiner = c == 0x200C || c == 0x200D;
  const bool circled_letter = (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
                              (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  if (joiner || circled_letter || is_mark(c)) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

void Utf8Stream::append_replacement(size_t bytes, std::string& out) const {
  const size_t count = replace_ == Replace::kByte ? bytes : 1;
  for (size_t i = 0; i < count; ++i) out += "\xEF\xBF\xBD";
}

void Utf8Stream::consume(std::string_view bytes, bool last, std::string& out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Sequence sequence = read_sequence(bytes.substr(i));
    if (sequence.form == Form::kIncomplete && !last) break;
    if (sequence.form == Form::kWell) {
      out.append(bytes, i, sequence.length);
    } else {
      append_replacement(sequence.length, out);
    }
    i += sequence.length;
  }
  held_.assign(bytes.substr(i));
}

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  if (held_.empty()) return consume(bytes, false, out);
  std::string joined = held_;
  joined += bytes;
  consume(joined, false, out);
}

void Utf8Stream::finish(std::string& out) {
  const std::string rest = held_;
  consume(rest, true, out);
}

}  // namespace braid::tok
