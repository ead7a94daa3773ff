#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "braid/model/config.h"
#include "braid/train/evaluate.h"
#include "braid/train/loader.h"
#include "braid/train/run_directory.h"

namespace braid {

struct TrainDataFlags {
  // Text.
  std::string tokenizer, valid;
  std::vector<std::string> data;
  LoaderOptions loader;  // its batch and seed serve tasks too
  int64_t eval_tokens = 0;
  // A task.
  std::string task;
  std::vector<std::string> eval_tasks;
  int64_t eval_examples = 1000;
};

/// What `braid train` trains and evaluates on, as its flags say.
class TrainData {
 public:
  virtual ~TrainData() = default;
  /// Vocabulary, longest sequence and special ids of a model for this data.
  virtual void configure(ModelConfig& config) const = 0;
  /// What the model directory carries as its tokenizer.json; empty for none.
  virtual std::string tokenizer_json() const { return {}; }
  /// Reads or makes it; `directory` keeps what should outlive the process.
  virtual void open(Context& ctx, const RunDirectory& directory) = 0;

  /// After `open`.
  BatchSource& source() { return *source_; }
  std::vector<const EvaluationSet*> evaluations() const;

 protected:
  std::unique_ptr<BatchSource> source_;
  std::vector<std::unique_ptr<EvaluationSet>> evaluations_;
};

/// Throws UsageError where the flags make no sense.
std::unique_ptr<TrainData> make_train_data(const TrainDataFlags& flags);

/// "validation loss 2.5, ..." or "SPEC: accuracy 0.99, ...".
std::string describe(const EvaluationSet& set, const Evaluation& evaluation);

}  // namespace braid
