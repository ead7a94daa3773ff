#include "braid/train/dataset.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

#include "braid/core/error.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// Text tokenised at a time: bounds the memory that waits to be written.
constexpr size_t kGroupBytes = size_t{32} << 20;

int64_t modified_ns(const fs::path& path) {
  std::error_code error;
  const auto time = fs::last_write_time(path, error);
  check(!error, ErrorKind::kIo, "cannot stat {}: {}", path.string(), error.message());
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

TokenSource source_of(const fs::path& text, const DocumentEncoder& encoder) {
  std::error_code error;
  const auto bytes = fs::file_size(text, error);
  check(!error, ErrorKind::kIo, "cannot open {}: {}", text.string(), error.message());
  // The ids around a document change the file as much as the tokenizer does.
  const std::string ends = fmt::format("{},{}", encoder.start, encoder.end);
  return {.tokenizer = hash_bytes(ends, encoder.fingerprint),
          .bytes = bytes,
          .modified_ns = modified_ns(text),
          .vocab = encoder.vocab};
}

std::vector<int32_t> encode_document(const DocumentEncoder& encoder, std::string_view text) {
  const std::vector<int32_t> ids = encoder.encode(text);
  std::vector<int32_t> tokens;
  tokens.reserve(ids.size() + 2);
  if (encoder.start >= 0) tokens.push_back(encoder.start);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  if (encoder.end >= 0) tokens.push_back(encoder.end);
  return tokens;
}

// Tokenises documents side by side; an exception must not leave a worker, so it is carried out.
std::vector<std::vector<int32_t>> encode_group(const DocumentEncoder& encoder, ThreadPool& threads,
                                               std::span<const std::string_view> documents) {
  std::vector<std::vector<int32_t>> tokens(documents.size());
  std::vector<std::exception_ptr> errors(documents.size());
  threads.parallel_for(static_cast<int64_t>(documents.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      try {
        tokens[i] = encode_document(encoder, documents[i]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return tokens;
}

// A folder that is taken back if nothing came of it, with those above it that were made as well.
class NewFolder {
 public:
  explicit NewFolder(const fs::path& path) {
    for (fs::path above = path; !above.empty() && !fs::exists(above); above = above.parent_path()) {
      made_.push_back(above);
    }
    std::error_code error;
    fs::create_directories(path, error);
    check(!error, ErrorKind::kIo, "cannot create {}: {}", path.string(), error.message());
  }
  ~NewFolder() {
    std::error_code ignored;
    for (const fs::path& path : made_) fs::remove(path, ignored);  // only where it is empty
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  void keep() { made_.clear(); }

 private:
  std::vector<fs::path> made_;  // innermost first
};

TokenFile open_cached(const fs::path& text, const DocumentEncoder& encoder, ThreadPool& threads,
                      const fs::path& cache, const Progress& progress) {
  const std::string absolute = fs::absolute(text).lexically_normal().string();
  const fs::path path =
      cache / fmt::format("{}-{:016x}.tokens", text.stem().string(), hash_bytes(absolute));
  if (fs::exists(path)) {
    try {
      TokenFile file(path);
      if (file.source() == source_of(text, encoder)) return file;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kFormat) throw;  // an older format: made again below
    }
  }
  source_of(text, encoder);  // refuses what is not there before a folder is made for it
  NewFolder folder(cache);
  write_token_file(text, encoder, threads, path, progress);
  folder.keep();
  return TokenFile(path);
}

}  // namespace

uint64_t hash_bytes(std::string_view bytes, uint64_t seed) {
  uint64_t hash = seed;
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

std::vector<std::string_view> split_documents(std::string_view text) {
  std::vector<std::string_view> documents;
  const auto add = [&](size_t begin, size_t end) {
    if (end > begin) documents.push_back(text.substr(begin, end - begin));
  };
  size_t begin = 0;
  for (size_t at = text.find(kDocumentEnd); at != std::string_view::npos;
       at = text.find(kDocumentEnd, at + 1)) {
    size_t after = at + kDocumentEnd.size();
    if (at > 0 && text[at - 1] != '\n') continue;  // not a line of its own
    if (after < text.size() && text[after] == '\r') ++after;
    if (after < text.size() && text[after] != '\n') continue;
    size_t end = at;
    if (end > begin) --end;
    if (end > begin && text[end - 1] == '\r') --end;
    add(begin, end);
    begin = std::min(after + 1, text.size());
  }
  add(begin, text.size());
  return documents;
}

void write_token_file(const fs::path& text, const DocumentEncoder& encoder, ThreadPool& threads,
                      const fs::path& out, const Progress& progress) {
  const TokenSource source = source_of(text, encoder);
  const auto file = MappedFile::open(text);
  const auto bytes = file->bytes();
  const std::string_view whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::vector<std::string_view> documents = split_documents(whole);
  check(!documents.empty(), ErrorKind::kFormat, "{}: no text in it, want at least one document",
        text.string());

  TokenFileWriter writer(out, source);
  int64_t done = 0;
  for (size_t first = 0; first < documents.size();) {
    size_t last = first, size = 0;
    while (last < documents.size() && (last == first || size < kGroupBytes)) {
      size += documents[last++].size();
    }
    const auto group = std::span(documents).subspan(first, last - first);
    const auto tokens = encode_group(encoder, threads, group);
    for (size_t i = 0; i < group.size(); ++i) {
      writer.add_document(tokens[i], static_cast<int64_t>(group[i].size()));
    }
    file->release_pages(
        group.front().data(),
        static_cast<size_t>(group.back().data() + group.back().size() - group.front().data()));
    done = group.back().data() + group.back().size() - whole.data();
    if (progress) progress(done, static_cast<int64_t>(whole.size()));
    first = last;
  }
  writer.commit();
}

Dataset::Dataset(std::vector<TokenFile> files) : files_(std::move(files)) {
  for (uint32_t f = 0; f < files_.size(); ++f) {
    const TokenFile& file = files_[f];
    for (int64_t d = 0; d < file.documents(); ++d) {
      const int64_t tokens = file.begin(d + 1) - file.begin(d);
      documents_.push_back({f, file.begin(d), tokens});
      predictions_ += std::max<int64_t>(tokens - 1, 0);
    }
    tokens_ += file.tokens();
    text_bytes_ += file.text_bytes();
    const std::string what = fmt::format("{:x},{},{},{};", file.source().tokenizer, file.tokens(),
                                         file.documents(), file.text_bytes());
    fingerprint_ = hash_bytes(what, f == 0 ? hash_bytes("") : fingerprint_);
  }
  check(predictions_ > 0, ErrorKind::kFormat,
        "dataset: {} documents with {} tokens, want a document of at least two tokens",
        documents_.size(), tokens_);
}

Dataset Dataset::open(std::span<const fs::path> paths, const DocumentEncoder& encoder,
                      ThreadPool& threads, const fs::path& cache, const Progress& progress) {
  check(!paths.empty(), "dataset: no files given, want at least one");
  std::vector<TokenFile> files;
  for (const fs::path& path : paths) {
    if (path.extension() != ".tokens") {
      files.push_back(open_cached(path, encoder, threads, cache, progress));
      continue;
    }
    files.emplace_back(path);
    const uint64_t want =
        hash_bytes(fmt::format("{},{}", encoder.start, encoder.end), encoder.fingerprint);
    check(files.back().source().tokenizer == want, ErrorKind::kFormat,
          "{}: made with another tokenizer than the one given", path.string());
  }
  return Dataset(std::move(files));
}

void Dataset::read(int64_t document, int64_t begin, std::span<int32_t> to) const {
  check(document >= 0 && document < documents(), "dataset: document {}, there are {}", document,
        documents());
  const Document& d = documents_[static_cast<size_t>(document)];
  const auto n = static_cast<int64_t>(to.size());
  check(begin >= 0 && begin + n <= d.tokens, "dataset: tokens [{}, {}) of document {}, it has {}",
        begin, begin + n, document, d.tokens);
  files_[d.file].read(d.begin + begin, to);
}

}  // namespace braid
