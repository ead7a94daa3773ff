#pragma once

// Random texts and small tokenizers for tests.

#include <fmt/core.h>

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

#include "braid/model/tokenizer/utf8.h"

namespace braid::test {

/// Well-formed UTF-8 of up to `characters` code points: ASCII words, spaces, all planes.
inline std::string random_utf8(std::mt19937& random, size_t characters) {
  constexpr std::string_view kCommon = "etaoin shrdlu  ETAOIN'st\n\t0123.,-<>_";
  std::string out;
  const size_t count = random() % (characters + 1);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t kind = random() % 8;
    if (kind < 5) {
      out += kCommon[random() % kCommon.size()];
      continue;
    }
    const uint32_t limit = kind == 5 ? 0x250 : kind == 6 ? 0xD800 : 0x110000;
    uint32_t c = random() % limit;
    if (c >= 0xD800 && c <= 0xDFFF) c = 0xFFFD;
    tok::append_code_point(c, out);
  }
  return out;
}

inline std::string random_bytes(std::mt19937& random, size_t bytes) {
  std::string out(random() % (bytes + 1), '\0');
  for (char& c : out)
    c = static_cast<char>(random() % 4 == 0 ? random() % 256 : 'a' + random() % 4);
  return out;
}

/// A SentencePiece-style tokenizer.json: all bytes, letters, a few merges, "<s>" before a text.
inline std::string sentencepiece_json(std::string_view merges = R"(["▁ t", ["t","h"], "▁t h"])",
                                      std::string_view extra_model = "") {
  std::string vocabulary = R"("<unk>": 0, "<s>": 1, "</s>": 2)";
  int id = 3;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string name = fmt::format("<0x{:02X}>", byte);
    vocabulary += fmt::format(", \"{}\": {}", name, id++);
  }
  for (const char* token : {"▁", "t", "h", "e", "a", "o", "n", "s", "▁t", "th", "▁th", "é"}) {
    vocabulary += fmt::format(", \"{}\": {}", token, id++);
  }
  return R"({"version": "1.0", "added_tokens": [
      {"id": 0, "content": "<unk>", "special": true, "normalized": false},
      {"id": 1, "content": "<s>", "special": true, "normalized": false},
      {"id": 2, "content": "</s>", "special": true, "normalized": false}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,)" +
         std::string(extra_model) + R"("vocab": {)" + vocabulary + R"(}, "merges": )" +
         std::string(merges) + "}}";
}

/// A byte-level tokenizer.json whose vocabulary is the bytes and some pairs of letters.
/// `components` are members such as "normalizer"; the decoder is ByteLevel.
inline std::string byte_level_json(std::string_view components, std::string_view added = "") {
  std::string vocabulary, merges;
  uint32_t next = 256;
  int id = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    std::string token;
    tok::append_code_point(printable ? byte : next++, token);
    if (byte == '"' || byte == '\\') token.insert(token.begin(), '\\');
    vocabulary += fmt::format("{}\"{}\": {}", id > 0 ? ", " : "", token, id);
    ++id;
  }
  for (const char* pair : {"t h", "e r", "th er", "Ġ a", "o n", "Ġ t"}) {
    std::string token(pair);
    token.erase(token.find(' '), 1);
    vocabulary += fmt::format(", \"{}\": {}", token, id++);
    merges += fmt::format("{}\"{}\"", merges.empty() ? "" : ", ", pair);
  }
  return fmt::format(
      R"({{{}"added_tokens": [{}], "decoder": {{"type": "ByteLevel"}},
          "model": {{"type": "BPE", "vocab": {{{}}}, "merges": [{}]}}}})",
      components, added, vocabulary, merges);
}

/// A world vocabulary: all bytes and a few longer tokens.
inline std::string world_vocabulary() {
  std::string out;
  int id = 1;
  for (int byte = 0; byte < 256; ++byte) {
    out += fmt::format("{} b'\\x{:02x}' 1\n", id++, byte);
  }
  for (const char* token : {"'th' 2", "'the' 3", "' the' 4", "'\\n\\n' 2", "'\\u00e9t' 3",
                            "\"it's\" 4", "'  ' 2", "b'\\xe2\\x80' 2"}) {
    out += fmt::format("{} {}\n", id++, token);
  }
  return out;
}

}  // namespace braid::test
