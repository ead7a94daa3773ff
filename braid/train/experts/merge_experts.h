#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "braid/train/evaluate.h"
#include "braid/train/experts/edited_model.h"

namespace braid {

struct MergeExpertsOptions {
  double max_loss_increase = 0.001;  // share of the loss of the model as it came
  double threshold = 0.5;            // relative_error up to which two experts may be merged
  int64_t max_merges = 0;            // 0: no limit
  int64_t rows = 1024;               // of the sample on which functions are compared
  uint64_t seed = 0;                 // of the sample
};

/// A pair that was tried.
struct MergeAttempt {
  size_t sublayer = 0;
  ExpertPair pair;                 // indices as they were then
  int64_t load_i = 0, load_j = 0;  // tokens
  int64_t experts = 0;             // of the layer, before
  double loss_before = 0, loss_after = 0;
  bool accepted = false;
};

/// What is measured of a layer before anything is tried.
struct LayerSurvey {
  size_t sublayer = 0;
  int64_t experts = 0, top_k = 0;
  double least_error = 0;      // of two experts
  int64_t pairs = 0;           // within the threshold
  std::vector<int64_t> loads;  // tokens by expert
};

struct MergeObserver {
  std::function<void(const Evaluation&, const std::vector<LayerSurvey>&)> on_survey;
  std::function<void(const MergeAttempt&)> on_attempt;
};

struct MergeResult {
  double loss_before = 0, loss_after = 0;
  int64_t merges = 0;
};

/// Throws Error(kUsage) where an option is out of range.
void check_options(const MergeExpertsOptions& options);
/// Throws Error(kUsage) where the model has no layer of experts, or one whose choice is limited by
/// groups, which one expert less would make of unequal size.
void check_mergeable(const ModelConfig& config);

/// Merges experts that have become one function, while the loss on `set` stays within
/// (1 + max_loss_increase) of what it was.
///
/// One pass over the set gathers the loss, the loads and a sample of the rows that enter each layer
/// of experts. Of all pairs within the threshold the one of least cost is merged, the stack is
/// built anew with one expert less in that layer, and the loss is measured again: a merge that goes
/// beyond the limit is undone, and its layer is done. A layer keeps k experts. `model` is left as
/// the last accepted merge. Two stacks are in memory at a time.
///
/// Throws as check_options and check_mergeable do.
MergeResult merge_experts(Context& ctx, EditedModel& model, const EvaluationSet& set,
                          const MergeExpertsOptions& options, const MergeObserver& observer = {});

}  // namespace braid
