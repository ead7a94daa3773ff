#pragma once

#include <cstdint>
#include <vector>

#include "braid/train/dataset.h"
#include "braid/train/source.h"

namespace braid {

/// A run of one document: `length` inputs from token `begin` on, and as many targets one later.
struct Piece {
  int64_t document = 0, begin = 0;
  int64_t length = 0;
};

struct LoaderOptions {
  int64_t length = 512;  // longest sequence, T
  int64_t batch = 16;    // a batch has exactly batch * length tokens
  uint64_t seed = 0;
};

/// Packed batches of text without padding; the target of a token is the next one of its document.
/// An epoch cuts every document into pieces of T tokens, from a
/// phase drawn for that epoch, and lays the pieces end to end in an order drawn for that epoch;
/// epochs follow each other, and batch k is tokens [k B T, (k + 1) B T) of that endless row. What
/// falls across the edge of a batch is cut there. Each piece is a sequence of its own.
///
/// So a batch is a pure function of (dataset, options, k).
/// Costs 24 bytes per piece of an epoch, and one shuffle of them when an epoch begins.
///
/// Thread safety: one thread at a time (the current epoch's order is cached).
class Loader final : public BatchSource {
 public:
  /// `dataset` must outlive the loader.
  Loader(const Dataset& dataset, const LoaderOptions& options);

  TrainingBatch batch(int64_t index) override;
  int64_t tokens_per_batch() const override { return options_.length * options_.batch; }
  nlohmann::json identity() const override;
  std::string describe(int64_t batches) const override;
  /// Passes over the corpus after so many batches.
  double epochs(int64_t batches) const;

 private:
  struct Epoch {
    int64_t index = -1;
    std::vector<Piece> pieces;
    std::vector<int64_t> ends;  // running sum of lengths
  };
  const Epoch& epoch(int64_t index);

  const Dataset& dataset_;
  LoaderOptions options_;
  Epoch current_;
};

/// The pieces of every document from its start, in order: what evaluation reads. With `max_tokens`
/// above 0, an evenly spread selection of at most about that many tokens.
std::vector<Piece> evaluation_pieces(const Dataset& dataset, int64_t length,
                                     int64_t max_tokens = 0);

/// Appends a piece to a batch as one more sequence.
void append(const Dataset& dataset, const Piece& piece, TrainingBatch& batch);

struct TextSetOptions {
  int64_t length = 512;    // documents are read in pieces of at most this many tokens
  int64_t max_tokens = 0;  // an evenly spread selection of about this many; 0: everything
};

/// A corpus to evaluate on: its pieces, each a sequence of its own, as in training. With
/// `max_tokens` the bytes are those of the whole corpus in proportion to the tokens read.
class TextSet final : public EvaluationSet {
 public:
  /// `dataset` must outlive the set.
  TextSet(const Dataset& dataset, const TextSetOptions& options);

  std::string name() const override { return "text"; }
  int64_t sequences() const override { return static_cast<int64_t>(pieces_.size()); }
  int64_t length(int64_t sequence) const override {
    return pieces_[static_cast<size_t>(sequence)].length;
  }
  void append(int64_t sequence, TrainingBatch& batch) const override;
  double bytes_per_target() const override;

 private:
  const Dataset& dataset_;
  std::vector<Piece> pieces_;
};

}  // namespace braid
