#include "braid/model/tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "braid/core/error.h"
#include "braid/model/json.h"
#include "braid/model/tokenizer/utf8.h"

namespace braid::tok {
namespace {

constexpr uint64_t kNoMerge = ~uint64_t{0};
constexpr size_t kScanSymbolsMax = 48;  // below this, scanning for the best pair beats a heap

uint32_t rank_of(uint64_t merge) { return static_cast<uint32_t>(merge >> 32); }
int32_t merged_of(uint64_t merge) { return static_cast<int32_t>(merge & 0xFFFFFFFF); }

uint64_t find_merge(const PairMap& merges, int32_t left, int32_t right) {
  const uint64_t* merge = merges.find(static_cast<uint32_t>(left), static_cast<uint32_t>(right));
  return merge ? *merge : kNoMerge;
}

// Bytes 33-126, 161-172 and 174-255 are printable in Latin-1.
bool is_printable(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  uint32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const uint32_t code_point = is_printable(byte) ? static_cast<uint32_t>(byte) : next++;
    append_code_point(code_point, characters_[static_cast<size_t>(byte)]);
    bytes_[code_point] = static_cast<int16_t>(byte);
  }
}

std::optional<std::string> ByteAlphabet::bytes_of(std::string_view token) const {
  std::string out;
  for (size_t i = 0; i < token.size();) {
    const uint32_t c = next_code_point(token, i);
    if (c >= bytes_.size() || bytes_[c] < 0) return std::nullopt;
    out += static_cast<char>(bytes_[c]);
  }
  return out;
}

Bpe::Bpe(Vocabulary vocabulary, const Merges& merges, const BpeOptions& options)
    : vocabulary_(std::move(vocabulary)), merges_(merges.size()), options_(options) {
  const ByteAlphabet alphabet;
  for (int byte = 0; byte < 256; ++byte) {
    const auto b = static_cast<unsigned char>(byte);
    bytes_[b] =
        find_symbol(options.byte_level ? alphabet.character(b) : fmt::format("<0x{:02X}>", byte));
  }
  if (options.byte_level && options.ignore_merges) {
    for (const auto& [token, id] : vocabulary_) {
      if (std::optional<std::string> bytes = alphabet.bytes_of(token)) byte_words_[*bytes] = id;
    }
  }
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined = left;
    joined += right;
    const int32_t ids[] = {find_symbol(left), find_symbol(right), find_symbol(joined)};
    for (int i = 0; i < 3; ++i) {
      if (ids[i] >= 0) continue;
      fail(ErrorKind::kFormat, "tokenizer: merge {} of {} and {}: {} is no token", rank,
           quote(left), quote(right),
           quote(i == 0   ? left
                 : i == 1 ? right
                          : joined));
    }
    // A pair that is listed twice has the later rank, as in Hugging Face tokenizers.
    merges_.insert(static_cast<uint32_t>(ids[0]), static_cast<uint32_t>(ids[1]), 0) =
        (uint64_t{rank} << 32) | static_cast<uint32_t>(ids[2]);
  }
}

int32_t Bpe::find_symbol(std::string_view symbol) const {
  const auto found = vocabulary_.find(symbol);
  return found == vocabulary_.end() ? -1 : found->second;
}

bool Bpe::append_bytes(std::string_view symbol, std::vector<int32_t>& out) const {
  const size_t size = out.size();
  for (const char c : symbol) {
    const int32_t id = bytes_[static_cast<unsigned char>(c)];
    if (id < 0) {
      out.resize(size);
      return false;
    }
    out.push_back(id);
  }
  return true;
}

void Bpe::split(std::string_view word, std::vector<int32_t>& out) const {
  bool unk_pending = false;
  const auto flush = [&] {
    if (unk_pending) out.push_back(*options_.unk);
    unk_pending = false;
  };
  for (size_t i = 0; i < word.size();) {
    const auto lead = static_cast<unsigned char>(word[i]);
    const size_t length = options_.byte_level ? 1 : sequence_length(lead);
    const std::string_view symbol = word.substr(i, length);
    i += length;
    const int32_t id = options_.byte_level ? bytes_[lead] : find_symbol(symbol);
    if (id >= 0) {
      flush();
      out.push_back(id);
    } else if (options_.byte_fallback && append_bytes(symbol, out)) {
      continue;  // a pending unknown token comes after these, as in Hugging Face tokenizers
    } else {
      check(options_.unk.has_value(), ErrorKind::kFormat,
            "tokenizer: {} has no token, and there is no unknown token", quote(symbol));
      if (!options_.fuse_unk) flush();
      unk_pending = true;
    }
  }
  flush();
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    const Vocabulary& words = options_.byte_level ? byte_words_ : vocabulary_;
    if (const auto found = words.find(word); found != words.end()) {
      out.push_back(found->second);
      return;
    }
  }
  const size_t begin = out.size();
  split(word, out);
  const size_t symbols = out.size() - begin;
  if (symbols < 2) return;
  if (symbols <= kScanSymbolsMax) {
    merge_by_scan(out, begin);
  } else {
    merge_by_heap(out, begin);
  }
}

void Bpe::merge_by_scan(std::vector<int32_t>& out, size_t begin) const {
  int32_t* ids = out.data() + begin;
  size_t n = out.size() - begin;
  std::array<uint64_t, kScanSymbolsMax> pairs;  // pairs[i]: how ids[i] merges with ids[i + 1]
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find_merge(merges_, ids[i], ids[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (rank_of(pairs[i]) < rank_of(pairs[best])) best = i;
    }
    if (pairs[best] == kNoMerge) break;
    ids[best] = merged_of(pairs[best]);
    std::copy(ids + best + 2, ids + n, ids + best + 1);
    if (best + 2 < n) std::copy(&pairs[best + 2], &pairs[n - 1], &pairs[best + 1]);
    --n;
    if (best > 0) pairs[best - 1] = find_merge(merges_, ids[best - 1], ids[best]);
    if (best + 1 < n) pairs[best] = find_merge(merges_, ids[best], ids[best + 1]);
  }
  out.resize(begin + n);
}

void Bpe::merge_by_heap(std::vector<int32_t>& out, size_t begin) const {
  struct Symbol {
    int32_t id, previous, next;  // neighbours, -1: none; id -1: merged into the previous one
  };
  struct Candidate {
    uint32_t rank;
    int32_t position, merged;
    bool operator<(const Candidate& o) const {  // the top of the heap is the greatest
      return rank != o.rank ? rank > o.rank : position > o.position;
    }
  };
  const auto n = static_cast<int32_t>(out.size() - begin);
  std::vector<Symbol> symbols(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) {
    symbols[i] = {out[begin + static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1};
  }
  std::vector<Candidate> initial;
  const auto candidate = [&](int32_t i, auto&& add) {
    if (i < 0 || symbols[i].next < 0) return;
    const uint64_t merge = find_merge(merges_, symbols[i].id, symbols[symbols[i].next].id);
    if (merge != kNoMerge) add(Candidate{rank_of(merge), i, merged_of(merge)});
  };
  for (int32_t i = 0; i < n; ++i) {
    candidate(i, [&](const Candidate& c) { initial.push_back(c); });
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(initial));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const uint64_t merge = find_merge(merges_, left.id, right.id);
    if (merge == kNoMerge || merged_of(merge) != top.merged) continue;  // out of date
    left.id = top.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    const auto push = [&](const Candidate& c) { queue.push(c); };
    candidate(left.previous, push);
    candidate(top.position, push);
  }
  out.resize(begin);
  for (int32_t i = 0; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace braid::tok
