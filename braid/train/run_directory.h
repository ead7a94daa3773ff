#pragma once

#include <filesystem>
#include <string>

#include "braid/core/context.h"
#include "braid/core/dtype.h"
#include "braid/model/stack.h"
#include "braid/train/checkpoint_store.h"
#include "braid/train/metrics.h"

namespace braid {

struct RunDirectoryOptions {
  DType dtype = DType::kBF16;  // of the weights in model.safetensors
  int keep = 2;                // checkpoints
  std::string tokenizer_json;  // written beside the weights; empty for none
};

/// Where a training run lives:
///
///   config.json model.safetensors tokenizer.json   the model so far, ready for every subcommand
///   metrics.jsonl                                  one line a step or evaluation
///   checkpoints/step-N/                            what resuming needs
///   data/                                          tokenised text
class RunDirectory {
 public:
  /// Touches nothing yet.
  RunDirectory(std::filesystem::path folder, RunDirectoryOptions options);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path data() const { return folder_ / "data"; }
  std::filesystem::path metrics() const { return folder_ / "metrics.jsonl"; }
  CheckpointStore& checkpoints() { return checkpoints_; }

  /// Makes the folder, once everything that may refuse a run has been checked.
  void create() const;
  /// Writes the model directory from the stack's master weights; each file is replaced as a whole.
  void export_model(Context& ctx, const Stack& stack) const;

 private:
  std::filesystem::path folder_;
  RunDirectoryOptions options_;
  CheckpointStore checkpoints_;
};

}  // namespace braid
