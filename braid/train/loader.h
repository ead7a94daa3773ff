#pragma once

#include <cstdint>
#include <vector>

#include "braid/core/sequence_batch.h"
#include "braid/train/dataset.h"

namespace braid {

/// A packed batch: sequence s of `batch` predicts targets[i] from tokens[..i] of its own rows.
struct TrainingBatch {
  std::vector<int32_t> tokens;   // (N)
  std::vector<int32_t> targets;  // (N), the next token of the same document
  SequenceBatch batch;           // one sequence per piece, every start 0
};

/// A run of one document: `length` inputs from token `begin` on, and as many targets one later.
struct Piece {
  int64_t document = 0, begin = 0;
  int64_t length = 0;
};

struct LoaderOptions {
  int64_t length = 512;  // longest sequence, T
  int64_t batch = 16;    // a step has exactly batch * length tokens
  uint64_t seed = 0;
};

/// Packed batches without padding. An epoch cuts every document into pieces of T tokens, from a
/// phase drawn for that epoch, and lays the pieces end to end in an order drawn for that epoch;
/// epochs follow each other, and step k is tokens [k B T, (k + 1) B T) of that endless row. What
/// falls across the edge of a step is cut there. Each piece is a sequence of its own.
///
/// So a batch is a pure function of (dataset, options, step): resuming needs the step alone.
/// Costs 24 bytes per piece of an epoch, and one shuffle of them when an epoch begins.
///
/// Thread safety: one thread at a time (the current epoch's order is cached).
class Loader {
 public:
  /// `dataset` must outlive the loader.
  Loader(const Dataset& dataset, const LoaderOptions& options);

  TrainingBatch batch(int64_t step);
  int64_t tokens_per_step() const { return options_.length * options_.batch; }
  /// Passes over the corpus after `steps` steps.
  double epochs(int64_t steps) const;

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

}  // namespace braid
