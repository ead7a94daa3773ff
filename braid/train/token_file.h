#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "braid/core/file.h"

namespace braid {

/// What a token file was made from; a cached file is reused only if all of it still matches.
struct TokenSource {
  uint64_t tokenizer = 0;   // fingerprint of the tokenizer
  uint64_t bytes = 0;       // size of the text file
  int64_t modified_ns = 0;  // its modification time
  int32_t vocab = 0;        // ids are below this
  friend bool operator==(const TokenSource&, const TokenSource&) = default;
};

/// A tokenised corpus on disk, memory-mapped: the tokens of all documents end to end and a table of
/// where each begins. Little-endian:
///
///   header   64 bytes: "BRAIDTOK", version u32, bytes per token u32 (2 or 4), TokenSource
///   tokens   u16 where the vocabulary allows, else u32; padded to 8 bytes
///   table    (documents + 1) u64 offsets in tokens, the first 0, the last the token count
///   trailer  32 bytes: tokens u64, documents u64, bytes of text u64, "BRAIDEND"
///
/// Thread safety: immutable.
class TokenFile {
 public:
  /// Throws Error(kFormat) if the file is not one, is cut short or has a table that does not fit.
  explicit TokenFile(const std::filesystem::path& path);

  const TokenSource& source() const { return source_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(table_.size()) - 1; }
  /// Bytes of the documents' text, separators left out.
  int64_t text_bytes() const { return text_bytes_; }
  /// Offset of a document's first token; `documents()` gives the end of the last.
  int64_t begin(int64_t document) const {
    return static_cast<int64_t>(table_[static_cast<size_t>(document)]);
  }

  /// Copies tokens [begin, begin + to.size()) of the file. Throws Error(kFormat) at an id outside
  /// the vocabulary.
  void read(int64_t begin, std::span<int32_t> to) const;

 private:
  std::shared_ptr<MappedFile> file_;
  TokenSource source_;
  int64_t tokens_ = 0, text_bytes_ = 0;
  int bytes_per_token_ = 2;
  const std::byte* data_ = nullptr;
  std::span<const uint64_t> table_;
};

/// Writes a token file; nothing of that name changes before `commit`.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, const TokenSource& source);

  void add_document(std::span<const int32_t> tokens, int64_t text_bytes);
  void commit();

 private:
  AtomicFile file_;
  TokenSource source_;
  int bytes_per_token_;
  int64_t text_bytes_ = 0;
  std::vector<uint64_t> table_{0};
};

}  // namespace braid
