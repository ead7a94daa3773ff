#include "braid/model/tokenizer/tokenizer.h"

#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/json.h"
#include "braid/model/tokenizer/parts.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid {
namespace {

using tok::Bpe;
using tok::ByteModel;
using tok::WorldModel;
using Parts = Tokenizer::Parts;

constexpr size_t kTokenizerBytesMax = size_t{256} << 20;
constexpr size_t kTextBytesMax = size_t{1} << 30;  // positions within a word are 32-bit

// Remembers where recent words were first written in the output, since text repeats its words.
class WordMemory {
 public:
  bool copy(std::string_view word, std::vector<int32_t>& out) {
    const Entry& entry = slot(word);
    if (entry.word != word) return false;
    const auto begin = static_cast<std::ptrdiff_t>(entry.begin);
    for (std::ptrdiff_t i = 0; i < entry.count; ++i) out.push_back(out[begin + i]);
    return true;
  }
  void remember(std::string_view word, size_t begin, size_t count) {
    slot(word) = {word, begin, static_cast<uint32_t>(count)};
  }

 private:
  struct Entry {
    std::string_view word;
    size_t begin = 0;
    uint32_t count = 0;
  };
  static constexpr size_t kEntries = size_t{1} << 15;
  std::vector<Entry> entries_{kEntries};
  Entry& slot(std::string_view word) {
    const size_t hash = std::hash<std::string_view>{}(word);
    return entries_[(hash ^ (hash >> 32)) & (kEntries - 1)];
  }
};

void encode_words(const Bpe& model, const tok::Words& words, std::vector<int32_t>& out) {
  constexpr size_t kWordsWorthMemory = 1000, kWordBytesMax = 64;
  std::optional<WordMemory> memory;
  if (words.ranges.size() >= kWordsWorthMemory) memory.emplace();
  const std::string_view text = words.text;
  for (const tok::Range& range : words.ranges) {
    const std::string_view word = text.substr(range.begin, range.end - range.begin);
    const bool memorable = memory && word.size() <= kWordBytesMax;
    if (memorable && memory->copy(word, out)) continue;
    const size_t begin = out.size();
    model.encode(word, out);
    if (memorable) memory->remember(word, begin, out.size() - begin);
  }
}

void encode_text(const Bpe& model, const Parts& parts, std::string_view text,
                 std::vector<int32_t>& out) {
  const std::optional<size_t> bad = tok::invalid_utf8_offset(text);
  check(!bad, ErrorKind::kFormat, "tokenizer: the text is not UTF-8 at byte {}", bad.value_or(0));
  for (const auto& raw : parts.raw_tokens.split(text)) {
    if (raw.id >= 0) {
      out.push_back(raw.id);
      continue;
    }
    const std::string piece =
        parts.normalizer.apply(text.substr(raw.range.begin, raw.range.end - raw.range.begin));
    for (const auto& part : parts.normalized_tokens.split(piece)) {
      if (part.id >= 0) {
        out.push_back(part.id);
        continue;
      }
      const bool at_start = raw.range.begin == 0 && part.range.begin == 0;
      encode_words(model,
                   parts.pre_tokenizer.apply(
                       piece.substr(part.range.begin, part.range.end - part.range.begin), at_start),
                   out);
    }
  }
}

void encode_text(const ByteModel&, const Parts&, std::string_view text, std::vector<int32_t>& out) {
  out.reserve(out.size() + text.size());
  for (const char c : text) out.push_back(static_cast<unsigned char>(c));
}

void encode_text(const WorldModel& model, const Parts&, std::string_view text,
                 std::vector<int32_t>& out) {
  while (!text.empty()) {
    const tok::ByteTrie::Match match = model.trie.longest(text);
    out.push_back(match.value);  // every single byte is a token
    text.remove_prefix(match.length);
  }
}

std::optional<int32_t> find_token(const Parts& parts, std::string_view token) {
  if (const auto found = parts.added_ids.find(token); found != parts.added_ids.end()) {
    return found->second;
  }
  if (const Bpe* bpe = std::get_if<Bpe>(&parts.model)) {
    const auto found = bpe->vocabulary().find(token);
    if (found != bpe->vocabulary().end()) return found->second;
    return std::nullopt;
  }
  if (const WorldModel* world = std::get_if<WorldModel>(&parts.model)) {
    const tok::ByteTrie::Match match = world->trie.longest(token);
    if (match.length == token.size() && match.value >= 0) return match.value;
    return std::nullopt;
  }
  if (token.size() == 1) return static_cast<unsigned char>(token[0]);
  return std::nullopt;
}

// The id of `tokenizer_config.json`'s KEY, which is a token or an object with its "content".
std::optional<int32_t> configured_id(const nlohmann::json& config, const char* key,
                                     const Parts& parts) {
  if (!config.is_object() || !config.contains(key)) return std::nullopt;
  const nlohmann::json* value = &config[key];
  if (value->is_object() && value->contains("content")) value = &(*value)["content"];
  return value->is_string() ? find_token(parts, value->get_ref<const std::string&>())
                            : std::nullopt;
}

std::unique_ptr<Parts> parse_file(const std::filesystem::path& path) {
  const std::string text = read_text(path, kTokenizerBytesMax);
  try {
    const size_t first = text.find_first_not_of(" \t\r\n");
    check(first != text.npos, ErrorKind::kFormat, "the file is empty");
    if (text[first] == '{') return tok::parse_tokenizer_json(text);
    check(text[first] >= '0' && text[first] <= '9', ErrorKind::kFormat,
          "neither a tokenizer.json nor a world vocabulary");
    return tok::parse_world_vocabulary(text);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", path.string(), error.what()));
  }
}

void read_config(const std::filesystem::path& path, Parts& parts) {
  const nlohmann::json config =
      read_json(path, {.max_bytes = kTokenizerBytesMax, .python_numbers = true});
  check(config.is_object(), ErrorKind::kFormat, "{}: not a JSON object", path.string());
  if (const auto id = configured_id(config, "bos_token", parts)) parts.bos = id;
  if (const auto id = configured_id(config, "eos_token", parts)) parts.eos = id;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  if (path == "bytes") return bytes();
  std::error_code ignored;  // what is wrong with the path shows when it is opened
  const bool is_directory = std::filesystem::is_directory(path, ignored);
  const std::filesystem::path file = is_directory ? path / "tokenizer.json" : path;
  std::unique_ptr<Parts> parts = parse_file(file);
  const std::filesystem::path config = file.parent_path() / "tokenizer_config.json";
  if (std::filesystem::exists(config, ignored)) read_config(config, *parts);
  return std::make_shared<const Tokenizer>(std::move(parts));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view json) {
  return std::make_shared<const Tokenizer>(tok::parse_tokenizer_json(json));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_world_vocabulary(std::string_view text) {
  return std::make_shared<const Tokenizer>(tok::parse_world_vocabulary(text));
}

std::shared_ptr<const Tokenizer> Tokenizer::bytes() {
  auto parts = std::make_unique<Parts>();
  for (int32_t byte = 0; byte < 256; ++byte) {
    parts->detokenizer.add_bytes(byte, std::string(1, static_cast<char>(byte)), false);
  }
  parts->detokenizer.add_bytes(256, tok::kEndOfDocument, true);
  parts->added_ids.emplace(tok::kEndOfDocument, 256);
  parts->eos = parts->end_of_document = 256;
  parts->fingerprint = tok::hash_bytes("bytes");
  return std::make_shared<const Tokenizer>(std::move(parts));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  check(text.size() <= kTextBytesMax, ErrorKind::kResource,
        "tokenizer: the text has {} bytes, at most {} are read at once", text.size(),
        kTextBytesMax);
  std::vector<int32_t> out;
  if (options.special) out = parts_->prefix;
  std::visit([&](const auto& model) { encode_text(model, *parts_, text, out); }, parts_->model);
  if (options.special) out.insert(out.end(), parts_->suffix.begin(), parts_->suffix.end());
  return out;
}

int32_t Tokenizer::vocab_size() const { return parts_->detokenizer.size(); }

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  return find_token(*parts_, token);
}

bool Tokenizer::is_special(int32_t id) const {
  return parts_->detokenizer.has(id) && parts_->detokenizer.is_special(id);
}
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos; }
std::optional<int32_t> Tokenizer::end_of_document_id() const { return parts_->end_of_document; }
uint64_t Tokenizer::fingerprint() const { return parts_->fingerprint; }

std::optional<size_t> invalid_utf8_offset(std::string_view text) {
  return tok::invalid_utf8_offset(text);
}

namespace tok {

uint64_t hash_bytes(std::string_view bytes) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001B3ULL;
  return hash;
}

}  // namespace tok
}  // namespace braid
