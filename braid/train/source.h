#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/model/stack.h"
#include "braid/ops/cross_entropy/cross_entropy.h"

namespace braid {

/// A packed batch: sequence s of `batch` predicts targets[i] from tokens[..i] of its own rows. A
/// negative target is not predicted and does not count.
struct TrainingBatch {
  std::vector<int32_t> tokens;   // (N)
  std::vector<int32_t> targets;  // (N)
  SequenceBatch batch;           // every start 0
};

/// Runs the stack over a batch and scores it: `loss` is the mean over the C targets that count, and
/// the results have a row for each of these, in order. Logits are computed for no other row (the
/// rows of `options` are set here). On the context's tape, if there is one.
CrossEntropyResult predict(Context& ctx, const Stack& stack, const TrainingBatch& batch,
                           ForwardOptions options = {});

/// An endless row of training batches: pieces of a corpus, examples of a task.
///
/// Thread safety: one thread at a time.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  /// Batch number `index` from 0. A pure function of the source's identity and `index`, so that a
  /// run can be resumed at any step. Every batch has the same number of tokens, and of targets that
  /// count.
  virtual TrainingBatch batch(int64_t index) = 0;
  virtual int64_t tokens_per_batch() const = 0;
  /// What decides the batches: a flat object that a run and its resumption must share.
  virtual nlohmann::json identity() const = 0;
  /// What the first `batches` batches are, for people.
  virtual std::string describe(int64_t batches) const = 0;
};

/// Sequences to measure a stack on.
///
/// Thread safety: immutable.
class EvaluationSet {
 public:
  virtual ~EvaluationSet() = default;
  virtual std::string name() const = 0;
  virtual int64_t sequences() const = 0;
  virtual int64_t length(int64_t sequence) const = 0;
  /// Adds one sequence to a batch.
  virtual void append(int64_t sequence, TrainingBatch& batch) const = 0;
  /// Of text that a target that counts stands for; 0 where there is no text.
  virtual double bytes_per_target() const { return 0; }
};

}  // namespace braid
