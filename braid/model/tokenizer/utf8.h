#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace braid::tok {

/// Offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7), if any.
std::optional<size_t> invalid_utf8_offset(std::string_view text);

/// The code point at `offset` of well-formed text; advances `offset` past it.
uint32_t next_code_point(std::string_view text, size_t& offset);
/// Bytes of the character that starts with `lead`, in well-formed text.
constexpr size_t sequence_length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}
void append_code_point(uint32_t code_point, std::string& out);

/// The White_Space property.
bool is_space(uint32_t code_point);
bool is_mark(uint32_t code_point);
/// Alphabetic, marks, decimal digits, connectors and joiners: `\w` of Unicode UTS #18.
bool is_word(uint32_t code_point);

/// Turns a stream of bytes into well-formed UTF-8: an incomplete character is held until its last
/// byte comes, what cannot become one is replaced by U+FFFD.
class Utf8Stream {
 public:
  enum class Replace {
    kSequence,  // one U+FFFD per maximal ill-formed subsequence, as the Unicode standard advises
    kByte,      // one per byte
  };
  explicit Utf8Stream(Replace replace) : replace_(replace) {}

  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  Replace replace_;
  std::string held_;  // at most 3 bytes between calls
  void consume(std::string_view bytes, bool last, std::string& out);
  void append_replacement(size_t bytes, std::string& out) const;
};

}  // namespace braid::tok
