#include "braid/model/tokenizer/detokenizer.h"

#include <charconv>

#include "braid/core/error.h"

namespace braid::tok {
namespace {

std::string apply(const ReplaceText& step, std::string token, bool) {
  return replace_all(token, step.from, step.to);
}

std::string apply(const DetokenizeRules::MetaspaceStep& step, std::string token, bool first) {
  return replace_all(token, step.replacement, first && step.prefix ? "" : " ");
}

std::string apply(const DetokenizeRules::StripStep& step, std::string token, bool) {
  for (size_t i = 0; i < step.start && token.starts_with(step.content); ++i) {
    token.erase(0, step.content.size());
  }
  for (size_t i = 0; i < step.stop && token.ends_with(step.content); ++i) {
    token.resize(token.size() - step.content.size());
  }
  return token;
}

// The byte of a token "<0xNN>".
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned byte = 0;
  const auto [end, error] = std::from_chars(&token[3], &token[5], byte, 16);
  if (error != std::errc{} || end != &token[5]) return std::nullopt;
  return static_cast<char>(byte);
}

}  // namespace

std::string Detokenizer::render(std::string_view token, bool first) const {
  std::string text(token);
  for (const auto& step : rules_.steps) {
    text = std::visit([&](const auto& s) { return apply(s, std::move(text), first); }, step);
  }
  if (rules_.bytes == DetokenizeRules::Bytes::kByteLevel) {
    // A token with characters outside the alphabet is an added one, which is itself.
    if (std::optional<std::string> bytes = alphabet_.bytes_of(text)) return *bytes;
  } else if (rules_.bytes == DetokenizeRules::Bytes::kByteFallback) {
    if (const std::optional<char> byte = fallback_byte(text)) return std::string(1, *byte);
  }
  return text;
}

Detokenizer::Piece& Detokenizer::at(int32_t id) {
  if (id >= size()) pieces_.resize(index(id) + 1);
  return pieces_[index(id)];
}

void Detokenizer::add_bytes(int32_t id, std::string_view bytes, bool special) {
  at(id) = {.bytes = std::string(bytes), .first = {}, .known = true, .special = special};
}

void Detokenizer::add_token(int32_t id, std::string_view token, bool special) {
  Piece piece{.bytes = render(token, false), .first = {}, .known = true, .special = special};
  std::string first = render(token, true);
  if (first != piece.bytes) piece.first = std::move(first);
  at(id) = std::move(piece);
}

TextBuilder::TextBuilder(const Detokenizer& tokens, bool skip_special, bool continuation)
    : tokens_(&tokens),
      utf8_(tokens.replace()),
      strip_left_(continuation ? 0 : tokens.rules().strip.start),
      skip_special_(skip_special),
      first_(!continuation) {}

void TextBuilder::push(int32_t id, std::string& out) {
  check(tokens_->has(id), "decode: id {} is not a token, ids are below {}", id, tokens_->size());
  if (skip_special_ && tokens_->is_special(id)) return;
  std::string text;
  if (!first_) utf8_.push(tokens_->rules().separator, text);
  utf8_.push(tokens_->bytes(id, first_), text);
  first_ = false;
  append(text, out);
}

void TextBuilder::finish(std::string& out) {
  std::string text;
  utf8_.finish(text);
  append(text, out);
}

void TextBuilder::append(std::string_view text, std::string& out) {
  const std::string& content = tokens_->rules().strip.content;
  while (strip_left_ > 0 && !text.empty()) {
    const bool stripped = text.starts_with(content);
    if (stripped) text.remove_prefix(content.size());
    strip_left_ = stripped ? strip_left_ - 1 : 0;
  }
  out += text;
}

}  // namespace braid::tok
