#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace braid {
namespace tok {
class TextBuilder;
}

struct EncodeOptions {
  /// Add what the file's post-processor adds around a text, such as a token for its beginning.
  bool special = false;
};

struct DecodeOptions {
  /// Leave special tokens out of the text.
  bool skip_special = false;
  /// The ids follow others: a first space that stands for the start of a text is kept.
  bool continuation = false;
};

/// Text to token ids and back. Four kinds: byte-level BPE and SentencePiece-style BPE of a Hugging
/// Face tokenizer.json, the RWKV world vocabulary (longest match), and plain bytes.
///
/// Ids are those that Hugging Face `tokenizers` (and, for the world vocabulary, the RWKV project's
/// own tokenizer) gives. Whatever a tokenizer.json asks for that is not read here is refused with
/// its name, but for `truncation` and `padding`, which shape batches and not tokens.
/// Immutable; safe to share between threads.
class Tokenizer {
 public:
  /// `path` is a tokenizer.json, a directory that holds one (a tokenizer_config.json beside it
  /// names the first and last token of a text), an RWKV world vocabulary (lines of id, Python
  /// literal, length), or the word "bytes". Throws Error(kIo), Error(kFormat) for what is
  /// malformed and Error(kUnsupported) for what is not read.
  static std::shared_ptr<const Tokenizer> load(const std::filesystem::path& path);
  static std::shared_ptr<const Tokenizer> from_json(std::string_view json);
  static std::shared_ptr<const Tokenizer> from_world_vocabulary(std::string_view text);
  /// Ids 0 to 255 are bytes; 256 ends a document and is never found in a text.
  static std::shared_ptr<const Tokenizer> bytes();
  ~Tokenizer();

  /// Tokens written out in the text ("<|endoftext|>") are recognised where the file lists them as
  /// added tokens. Throws Error(kFormat) with the offset of the first byte that is not UTF-8; the
  /// world vocabulary and bytes take any bytes.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  /// Well-formed UTF-8: what is not becomes U+FFFD. Throws Error(kUsage) for an id without token.
  std::string decode(std::span<const int32_t> ids, DecodeOptions options = {}) const;

  /// One more than the largest id.
  int32_t vocab_size() const;
  std::optional<int32_t> token_id(std::string_view token) const;
  bool is_special(int32_t id) const;
  /// The token before a text and after it, where the file or its configuration names them.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  /// The token between the documents of a training corpus.
  std::optional<int32_t> end_of_document_id() const;
  /// A hash of the contents of the file: equal for equal vocabularies and rules.
  uint64_t fingerprint() const;

  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<const Parts> parts_;
};

/// Text from ids that come one at a time. What the calls return, put together, is what `decode`
/// gives for all the ids. The tokenizer outlives it. Not thread-safe.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer, DecodeOptions options = {});
  ~StreamingDecoder();
  StreamingDecoder(StreamingDecoder&&) noexcept;
  StreamingDecoder& operator=(StreamingDecoder&&) noexcept;

  /// The text that is complete with this token; it may be empty.
  std::string push(int32_t id);
  /// What is left of an incomplete character, as U+FFFD.
  std::string finish();

 private:
  std::unique_ptr<tok::TextBuilder> text_;
};

/// Offset of the first byte of `text` that is not well-formed UTF-8, if there is one.
std::optional<size_t> invalid_utf8_offset(std::string_view text);

}  // namespace braid
