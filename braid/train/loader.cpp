#include "braid/train/loader.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "braid/core/error.h"
#include "braid/core/rng.h"

namespace braid {
namespace {

// Streams of the generator: one for where documents are cut, one for the order of the pieces.
constexpr uint64_t kCutStream = 0x637574, kOrderStream = 0x6f72646572;

}  // namespace

void append(const Dataset& dataset, const Piece& piece, TrainingBatch& batch) {
  const auto n = static_cast<size_t>(piece.length);
  std::vector<int32_t> run(n + 1);
  dataset.read(piece.document, piece.begin, run);
  batch.tokens.insert(batch.tokens.end(), run.begin(), run.end() - 1);
  batch.targets.insert(batch.targets.end(), run.begin() + 1, run.end());
  batch.batch.add(piece.length);
}

Loader::Loader(const Dataset& dataset, const LoaderOptions& options)
    : dataset_(dataset), options_(options) {
  check(options.length > 0, "loader: length {}, want at least 1", options.length);
  check(options.batch > 0, "loader: batch {}, want at least 1", options.batch);
  check(options.length <= std::numeric_limits<int32_t>::max() / options.batch,
        "loader: a batch of {} x {} tokens is too large", options.batch, options.length);
}

const Loader::Epoch& Loader::epoch(int64_t index) {
  if (current_.index == index) return current_;
  current_ = {.index = index};
  const Rng rng(options_.seed);
  const Rng cut = rng.fork(kCutStream).fork(static_cast<uint64_t>(index));
  const Rng order = rng.fork(kOrderStream).fork(static_cast<uint64_t>(index));
  const int64_t length = options_.length;
  for (int64_t d = 0; d < dataset_.documents(); ++d) {
    const int64_t inputs = dataset_.length(d) - 1;
    int64_t at = 0;
    if (inputs > length) {  // the first cut falls anywhere, so that epochs differ
      at = 1 +
           static_cast<int64_t>(cut.below(static_cast<uint64_t>(d), static_cast<uint64_t>(length)));
      current_.pieces.push_back({d, 0, at});
    }
    for (; at < inputs; at += length) {
      current_.pieces.push_back({d, at, std::min(length, inputs - at)});
    }
  }
  for (size_t i = current_.pieces.size(); i > 1; --i) {
    std::swap(current_.pieces[i - 1], current_.pieces[order.below(i, i)]);
  }
  current_.ends.reserve(current_.pieces.size());
  int64_t sum = 0;
  for (const Piece& piece : current_.pieces) current_.ends.push_back(sum += piece.length);
  return current_;
}

TrainingBatch Loader::batch(int64_t number) {
  check(number >= 0, "loader: batch {}, want at least 0", number);
  const int64_t total = dataset_.predictions();
  TrainingBatch out;
  int64_t left = tokens_per_batch();
  out.tokens.reserve(static_cast<size_t>(left));
  out.targets.reserve(static_cast<size_t>(left));
  int64_t index = number * left / total;
  int64_t at = number * left % total;  // within the epoch
  while (left > 0) {
    const Epoch& e = epoch(index);
    auto p =
        static_cast<size_t>(std::upper_bound(e.ends.begin(), e.ends.end(), at) - e.ends.begin());
    for (; left > 0 && p < e.pieces.size(); ++p) {
      Piece piece = e.pieces[p];
      const int64_t skip = at - (e.ends[p] - piece.length);  // what the step before has taken
      piece.begin += skip;
      piece.length = std::min(piece.length - skip, left);
      append(dataset_, piece, out);
      at += piece.length;
      left -= piece.length;
    }
    ++index;
    at = 0;
  }
  return out;
}

double Loader::epochs(int64_t batches) const {
  return static_cast<double>(batches) * static_cast<double>(tokens_per_batch()) /
         static_cast<double>(dataset_.predictions());
}

nlohmann::json Loader::identity() const {
  return {{"data", fmt::format("{:016x}", dataset_.fingerprint())},
          {"length", options_.length},
          {"batch", options_.batch},
          {"seed", options_.seed}};
}

std::string Loader::describe(int64_t batches) const {
  return fmt::format("{} tokens of text, {:.2f} passes over it", dataset_.tokens(),
                     epochs(batches));
}

std::vector<Piece> evaluation_pieces(const Dataset& dataset, int64_t length, int64_t max_tokens) {
  check(length > 0, "evaluation: length {}, want at least 1", length);
  std::vector<Piece> pieces;
  for (int64_t d = 0; d < dataset.documents(); ++d) {
    const int64_t inputs = dataset.length(d) - 1;
    for (int64_t at = 0; at < inputs; at += length) {
      pieces.push_back({d, at, std::min(length, inputs - at)});
    }
  }
  const int64_t total = dataset.predictions();
  if (max_tokens <= 0 || max_tokens >= total) return pieces;
  const auto count = static_cast<int64_t>(pieces.size());
  const int64_t keep = std::max<int64_t>(
      1, static_cast<int64_t>(static_cast<double>(count) * static_cast<double>(max_tokens) /
                              static_cast<double>(total)));
  std::vector<Piece> kept;
  for (int64_t i = 0; i < keep; ++i) kept.push_back(pieces[static_cast<size_t>(i * count / keep)]);
  return kept;
}

TextSet::TextSet(const Dataset& dataset, const TextSetOptions& options)
    : dataset_(dataset), pieces_(evaluation_pieces(dataset, options.length, options.max_tokens)) {
  check(dataset.text_bytes() > 0, ErrorKind::kFormat, "evaluation: the corpus has no text");
}

void TextSet::append(int64_t sequence, TrainingBatch& batch) const {
  braid::append(dataset_, pieces_[static_cast<size_t>(sequence)], batch);
}

double TextSet::bytes_per_target() const {
  return static_cast<double>(dataset_.text_bytes()) / static_cast<double>(dataset_.predictions());
}

}  // namespace braid
