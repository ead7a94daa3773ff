#include "braid/model/tokenizer/trainer.h"

#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/core/thread_pool.h"
#include "braid/model/tokenizer/bpe.h"
#include "braid/model/tokenizer/bpe_learner.h"
#include "braid/model/tokenizer/parts.h"
#include "braid/model/tokenizer/utf8.h"
#include "braid/model/tokenizer/word_counts.h"

namespace braid {
namespace {

using tok::kEndOfDocument;

constexpr int32_t kFirstMerge = 257;  // after the bytes and the end of a document
constexpr size_t kPieceBytes = size_t{1} << 20;

constexpr const char* kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Cuts a long document where kPattern always ends a word: between a newline and a letter.
void cut_document(std::string_view text, std::vector<std::string_view>& pieces) {
  while (text.size() > 2 * kPieceBytes) {
    size_t at = kPieceBytes;
    while (at < text.size() && !(text[at - 1] == '\n' && is_ascii_letter(text[at]))) ++at;
    pieces.push_back(text.substr(0, at));
    text.remove_prefix(at);
  }
  if (!text.empty()) pieces.push_back(text);
}

void cut_corpus(std::string_view text, std::vector<std::string_view>& pieces) {
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(kEndOfDocument, at), text.size());
    cut_document(text.substr(at, end - at), pieces);
    at = end + kEndOfDocument.size();
  }
}

void count_words(const tok::Regex& pattern, std::string_view text, tok::WordCounts& counts) {
  tok::Regex::Search search(pattern);
  for (size_t at = 0; at < text.size();) {
    const std::optional<tok::Range> match = search.next(text, at);
    if (!match) break;  // the pattern takes every character, so there is nothing left
    counts.add(text.substr(match->begin, match->end - match->begin), 1);
    at = match->end;
  }
}

tok::WordCounts count_corpus(const std::vector<std::string_view>& pieces,
                             const BpeTrainOptions& options) {
  ThreadPool threads(options.threads);
  const tok::Regex pattern(kPattern);
  std::vector<tok::WordCounts> counts(static_cast<size_t>(threads.size()));
  std::mutex mutex;
  size_t done = 0;
  std::exception_ptr error;
  threads.parallel_for(
      static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int worker) {
        try {
          for (int64_t i = begin; i < end; ++i) {
            count_words(pattern, pieces[static_cast<size_t>(i)],
                        counts[static_cast<size_t>(worker)]);
            const std::lock_guard lock(mutex);
            ++done;
            if (options.progress) {
              options.progress("counting words",
                               static_cast<double>(done) / static_cast<double>(pieces.size()));
            }
          }
        } catch (...) {
          const std::lock_guard lock(mutex);
          error = std::current_exception();
        }
      });
  if (error) std::rethrow_exception(error);
  for (size_t i = 1; i < counts.size(); ++i) {
    counts[i].for_each([&](std::string_view word, int64_t n) { counts[0].add(word, n); });
  }
  return std::move(counts[0]);
}

// A byte string as the vocabulary writes it, as a JSON string.
class TokenText {
 public:
  std::string operator()(std::string_view bytes) const {
    std::string out;
    for (const unsigned char byte : bytes) out += alphabet_.character(byte);
    return out;
  }

 private:
  tok::ByteAlphabet alphabet_;
};

std::string bytes_of(const tok::BpeLearner& learner, int32_t id) {
  return id < 256 ? std::string(1, static_cast<char>(id))
                  : learner.tokens()[static_cast<size_t>(id - kFirstMerge)];
}

// {"token": id, ...}, one a line and in the order of the ids, which no JSON object keeps.
std::string format_vocabulary(const tok::BpeLearner& learner) {
  const TokenText text;
  const auto line = [](const std::string& token, int32_t id) {
    return fmt::format("{}      {}: {}", id == 0 ? "" : ",\n", nlohmann::json(token).dump(), id);
  };
  std::string out;
  for (int32_t id = 0; id < 256; ++id) out += line(text(bytes_of(learner, id)), id);
  out += line(std::string(kEndOfDocument), 256);
  int32_t id = kFirstMerge;
  for (const std::string& token : learner.tokens()) out += line(text(token), id++);
  return out;
}

std::string format_merges(const tok::BpeLearner& learner) {
  const TokenText text;
  std::string out;
  for (const auto& [left, right] : learner.merges()) {
    const std::string merge = text(bytes_of(learner, left)) + " " + text(bytes_of(learner, right));
    out += fmt::format("{}      {}", out.empty() ? "" : ",\n", nlohmann::json(merge).dump());
  }
  return out;
}

constexpr std::string_view kTemplate = R"({{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [
    {{"id": 256, "content": {end_of_document}, "single_word": false, "lstrip": false,
     "rstrip": false, "normalized": false, "special": true}}
  ],
  "normalizer": null,
  "pre_tokenizer": {{"type": "Sequence", "pretokenizers": [
    {{"type": "Split", "pattern": {{"Regex": {pattern}}}, "behavior": "Isolated", "invert": false}},
    {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}}
  ]}},
  "post_processor": null,
  "decoder": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
    "use_regex": false}},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {{
{vocabulary}
    }},
    "merges": [
{merges}
    ]
  }}
}}
)";

std::string format_tokenizer(const tok::BpeLearner& learner) {
  return fmt::format(kTemplate, fmt::arg("end_of_document", nlohmann::json(kEndOfDocument).dump()),
                     fmt::arg("pattern", nlohmann::json(kPattern).dump()),
                     fmt::arg("vocabulary", format_vocabulary(learner)),
                     fmt::arg("merges", format_merges(learner)));
}

}  // namespace

BpeTrainResult train_byte_level_bpe(std::span<const std::filesystem::path> files,
                                    const std::filesystem::path& out,
                                    const BpeTrainOptions& options) {
  check(options.vocab_size >= kFirstMerge && options.vocab_size <= tok::kIdsMax,
        "tokenizer train: vocab_size is {}, want {} to {}", options.vocab_size, kFirstMerge,
        tok::kIdsMax);
  BpeTrainResult result;
  std::vector<std::shared_ptr<MappedFile>> mapped;  // words are views into them
  std::vector<std::string_view> pieces;
  for (const std::filesystem::path& path : files) {
    mapped.push_back(MappedFile::open(path));
    const auto bytes = mapped.back()->bytes();
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const std::optional<size_t> bad = tok::invalid_utf8_offset(text);
    check(!bad, ErrorKind::kFormat, "{}: not UTF-8 at byte {}", path.string(), bad.value_or(0));
    cut_corpus(text, pieces);
    result.bytes += static_cast<int64_t>(text.size());
  }
  tok::BpeLearner learner(kFirstMerge);
  {
    const tok::WordCounts counts = count_corpus(pieces, options);
    result.words = static_cast<int64_t>(counts.size());
    counts.for_each([&](std::string_view word, int64_t n) { learner.add_word(word, n); });
  }
  learner.learn(options.vocab_size - kFirstMerge, [&](double done) {
    if (options.progress) options.progress("learning merges", done);
  });
  result.vocab_size = kFirstMerge + static_cast<int32_t>(learner.tokens().size());
  write_text(out, format_tokenizer(learner));
  return result;
}

}  // namespace braid
