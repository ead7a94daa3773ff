#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "braid/core/thread_pool.h"
#include "braid/train/token_file.h"

namespace braid {

/// The line that ends a document in a text corpus.
inline constexpr std::string_view kDocumentEnd = "<|endoftext|>";

/// How a document's text becomes tokens. `encode` is called from several threads at once.
struct DocumentEncoder {
  std::function<std::vector<int32_t>(std::string_view text)> encode;
  uint64_t fingerprint = 0;  // changes whenever `encode` could give other ids
  int32_t vocab = 0;
  int32_t start = -1;  // put before every document, so that its first token is predicted too
  int32_t end = -1;    // put after every document; -1 for none
};

/// Bytes done, bytes in all.
using Progress = std::function<void(int64_t done, int64_t total)>;

/// The documents of a text: what lies between lines that are exactly kDocumentEnd. A line break
/// before the separator belongs to it; empty documents are dropped.
std::vector<std::string_view> split_documents(std::string_view text);

/// Tokenises TEXT into the token file OUT, in parallel over documents; OUT is complete or absent.
/// The document's tokens are start, encode(text), end.
void write_token_file(const std::filesystem::path& text, const DocumentEncoder& encoder,
                      ThreadPool& threads, const std::filesystem::path& out,
                      const Progress& progress = {});

/// A corpus of several token files, read as one list of documents.
///
/// Thread safety: immutable.
class Dataset {
 public:
  explicit Dataset(std::vector<TokenFile> files);

  /// Opens each path: a `.tokens` file as it is (it must come from the same tokenizer), a text file
  /// through a token file kept in `cache`, which is made again when the text, its time of change or
  /// the tokenizer differ.
  static Dataset open(std::span<const std::filesystem::path> paths, const DocumentEncoder& encoder,
                      ThreadPool& threads, const std::filesystem::path& cache,
                      const Progress& progress = {});

  int64_t documents() const { return static_cast<int64_t>(documents_.size()); }
  int64_t tokens() const { return tokens_; }
  int64_t text_bytes() const { return text_bytes_; }
  int64_t length(int64_t document) const {
    return documents_[static_cast<size_t>(document)].tokens;
  }
  /// Tokens that have a successor in their document: what one pass over the corpus predicts.
  int64_t predictions() const { return predictions_; }
  /// A hash of what the corpus is, so that a run is not resumed on another one.
  uint64_t fingerprint() const { return fingerprint_; }

  /// Copies tokens [begin, begin + to.size()) of a document.
  void read(int64_t document, int64_t begin, std::span<int32_t> to) const;

 private:
  struct Document {
    uint32_t file;
    int64_t begin, tokens;
  };
  std::vector<TokenFile> files_;
  std::vector<Document> documents_;
  int64_t tokens_ = 0, text_bytes_ = 0, predictions_ = 0;
  uint64_t fingerprint_ = 0;
};

/// FNV-1a, 64 bits: for names and fingerprints, not against an adversary.
uint64_t hash_bytes(std::string_view bytes, uint64_t seed = 0xcbf29ce484222325u);

}  // namespace braid
