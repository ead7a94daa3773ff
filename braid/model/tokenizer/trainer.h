#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

namespace braid {

struct BpeTrainOptions {
  /// Tokens in all: 256 bytes, the end of a document, and merges.
  int32_t vocab_size = 4096;
  /// 0: one per core. The result does not depend on it.
  int threads = 0;
  /// Called from one thread at a time with what is being done and how much of it is, 0 to 1.
  std::function<void(std::string_view stage, double done)> progress;
};

struct BpeTrainResult {
  int32_t vocab_size = 0;  // less than asked for if no pair of tokens occurs twice any more
  int64_t words = 0;       // different ones
  int64_t bytes = 0;       // of text
};

/// Learns a byte-level BPE vocabulary from UTF-8 text and writes it as a Hugging Face
/// tokenizer.json. Id b is byte b, 256 is "<|endoftext|>", which separates documents in the files
/// and is part of no word; merges follow in the order in which they were learned: the most
/// frequent pair, of equals the one with the smaller ids. Words end where the pattern of tiktoken's
/// cl100k_base says, with at most three digits in one.
///
/// Method: Sennrich et al., arXiv:1508.07909, with pair counts kept up to date in a heap. Throws
/// Error(kIo), or Error(kFormat) with the file and offset of text that is not UTF-8.
BpeTrainResult train_byte_level_bpe(std::span<const std::filesystem::path> files,
                                    const std::filesystem::path& out,
                                    const BpeTrainOptions& options = {});

}  // namespace braid
