#include "braid/train/token_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string_view>

namespace braid {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::string_view kMagic = "BRAIDTOK", kEnd = "BRAIDEND";
constexpr uint32_t kVersion = 1;
constexpr int32_t kLargestSmallVocab = 1 << 16;

struct Header {
  std::array<char, 8> magic{};
  uint32_t version = 0, bytes_per_token = 0;
  uint64_t tokenizer = 0, source_bytes = 0;
  int64_t modified_ns = 0;
  int32_t vocab = 0;
  std::array<char, 20> reserved{};
};
static_assert(sizeof(Header) == 64);

struct Trailer {
  uint64_t tokens = 0, documents = 0, text_bytes = 0;
  std::array<char, 8> magic{};
};
static_assert(sizeof(Trailer) == 32);

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

}  // namespace

TokenFile::TokenFile(const std::filesystem::path& path) : file_(MappedFile::open(path)) {
  const auto bytes = file_->bytes();
  const auto broken = [&](std::string_view why) {
    fail(ErrorKind::kFormat, "{}: not a usable token file: {}", path.string(), why);
  };
  Header header;
  Trailer trailer;
  if (bytes.size() < sizeof(header) + sizeof(trailer)) broken("it is too short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  std::memcpy(&trailer, bytes.data() + bytes.size() - sizeof(trailer), sizeof(trailer));
  if (std::string_view(header.magic.data(), 8) != kMagic) broken("the header is missing");
  if (header.version != kVersion) {
    broken(fmt::format("format version {}, want {}", header.version, kVersion));
  }
  if (std::string_view(trailer.magic.data(), 8) != kEnd) broken("the end is missing");
  if (header.bytes_per_token != 2 && header.bytes_per_token != 4) broken("unknown token width");
  // Both counts are bounded by the file's size before they are multiplied.
  if (trailer.tokens > bytes.size() || trailer.documents > bytes.size()) broken("bad counts");
  const size_t payload = padded(trailer.tokens * header.bytes_per_token);
  const size_t table_bytes = (trailer.documents + 1) * sizeof(uint64_t);
  if (sizeof(header) + payload + table_bytes + sizeof(trailer) != bytes.size()) broken("bad size");

  source_ = {header.tokenizer, header.source_bytes, header.modified_ns, header.vocab};
  bytes_per_token_ = static_cast<int>(header.bytes_per_token);
  tokens_ = static_cast<int64_t>(trailer.tokens);
  text_bytes_ = static_cast<int64_t>(trailer.text_bytes);
  data_ = bytes.data() + sizeof(header);
  table_ = {reinterpret_cast<const uint64_t*>(data_ + payload), trailer.documents + 1};
  if (table_.front() != 0 || table_.back() != trailer.tokens) broken("bad document table");
  for (size_t i = 1; i < table_.size(); ++i) {
    if (table_[i] < table_[i - 1]) broken("the document table does not rise");
  }
}

void TokenFile::read(int64_t begin, std::span<int32_t> to) const {
  const auto n = static_cast<int64_t>(to.size());
  check(begin >= 0 && n <= tokens_ && begin <= tokens_ - n,
        "token file: tokens [{}, {}) asked for, there are {}", begin, begin + n, tokens_);
  const std::byte* from = data_ + begin * bytes_per_token_;
  uint32_t largest = 0;
  if (bytes_per_token_ == 2) {
    const auto* ids = reinterpret_cast<const uint16_t*>(from);
    for (size_t i = 0; i < to.size(); ++i) {
      to[i] = ids[i];
      largest = std::max<uint32_t>(largest, ids[i]);
    }
  } else {
    const auto* ids = reinterpret_cast<const uint32_t*>(from);
    for (size_t i = 0; i < to.size(); ++i) {
      to[i] = static_cast<int32_t>(ids[i]);
      largest = std::max(largest, ids[i]);
    }
  }
  check(n == 0 || largest < static_cast<uint32_t>(source_.vocab), ErrorKind::kFormat,
        "{}: token id {}, want one below the vocabulary's {}", file_->path().string(), largest,
        source_.vocab);
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, const TokenSource& source)
    : file_(path), source_(source), bytes_per_token_(source.vocab <= kLargestSmallVocab ? 2 : 4) {
  check(source.vocab > 0, "token file: vocabulary of {} tokens, want at least 1", source.vocab);
  Header header{.version = kVersion,
                .bytes_per_token = static_cast<uint32_t>(bytes_per_token_),
                .tokenizer = source.tokenizer,
                .source_bytes = source.bytes,
                .modified_ns = source.modified_ns,
                .vocab = source.vocab};
  kMagic.copy(header.magic.data(), 8);
  file_.write(&header, sizeof(header));
}

void TokenFileWriter::add_document(std::span<const int32_t> tokens, int64_t text_bytes) {
  for (const int32_t id : tokens) {
    check(id >= 0 && id < source_.vocab, "token file: token id {}, want one below {}", id,
          source_.vocab);
  }
  if (bytes_per_token_ == 4) {
    file_.write(tokens.data(), tokens.size_bytes());
  } else {
    const std::vector<uint16_t> small(tokens.begin(), tokens.end());
    file_.write(small.data(), small.size() * sizeof(uint16_t));
  }
  table_.push_back(table_.back() + tokens.size());
  text_bytes_ += text_bytes;
}

void TokenFileWriter::commit() {
  const size_t payload = table_.back() * static_cast<size_t>(bytes_per_token_);
  const std::array<char, 8> zeros{};
  file_.write(zeros.data(), padded(payload) - payload);
  file_.write(table_.data(), table_.size() * sizeof(uint64_t));
  Trailer trailer{.tokens = table_.back(),
                  .documents = table_.size() - 1,
                  .text_bytes = static_cast<uint64_t>(text_bytes_)};
  kEnd.copy(trailer.magic.data(), 8);
  file_.write(&trailer, sizeof(trailer));
  file_.commit();
}

}  // namespace braid
