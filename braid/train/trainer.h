#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "braid/core/context.h"
#include "braid/model/stack.h"
#include "braid/train/evaluate.h"
#include "braid/train/experts/recycle.h"
#include "braid/train/optimizer.h"
#include "braid/train/run_directory.h"
#include "braid/train/schedule.h"
#include "braid/train/source.h"

namespace braid {

struct TrainerOptions {
  int64_t accumulate = 1;  // batches whose gradients make one step
  Schedule schedule;       // its `steps` is the length of the run
  OptimizerOptions optimizer;
  /// Experts that have become one function make room for others (see recycle_experts).
  RecycleOptions recycle;
  int64_t save_every = 500;
  int64_t eval_every = 500;
  /// The run ends early when the first evaluation set is predicted this well.
  std::optional<double> stop_accuracy;
  /// Matrix-product FLOP/s this machine reaches, for the share in the metrics; 0: not measured.
  double gemm_peak_flops = 0;
};

struct StepReport {
  int64_t step = 0;     // steps done
  double loss = 0;      // nats a target
  double accuracy = 0;  // of the targets, before the step
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_s = 0;
  double gemm_share = 0;  // of the peak, counting matrix products alone
  double seconds = 0;     // since the run began, pauses between resumptions left out
  /// By sublayer of experts: the tokens that chose its busiest expert, over the mean.
  std::vector<double> load_peaks;
  int64_t dropped = 0;       // choices of experts that a capacity left out, over all sublayers
  double dropped_share = 0;  // of all choices
  /// Tokens that routers decided on again, of those that they could have; none: no such routers.
  std::optional<double> rerouted;
};

/// Who wants to look on. Either may be empty.
struct TrainerObserver {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step, const EvaluationSet&, const Evaluation&)> on_evaluation;
  std::function<void(int64_t step, const RecycledExpert&)> on_recycled;
};

/// Owns the loop: batch -> Stack.forward under a tape -> loss -> backward -> clip -> step.
///
/// A run is a function of its options, source and stack alone. Killed at any instant and resumed
/// from its directory, with any number of threads, it ends in the same bits.
///
/// Thread safety: one thread at a time.
class Trainer {
 public:
  /// `stack` is trainable and initialised. All that is referred to must outlive the trainer.
  Trainer(Context& ctx, Stack& stack, BatchSource& source,
          std::vector<const EvaluationSet*> evaluations, RunDirectory& directory,
          const TrainerOptions& options);

  /// Goes on from the newest checkpoint. False if there is none. Throws Error(kUsage) where it
  /// belongs to another stack, source or seed.
  bool resume();

  /// Trains until `until` steps are done (the end of the schedule if there are fewer, or an early
  /// stop), writing metrics, checkpoints and, with them, the model directory. Throws Error(kUsage)
  /// if the loss or the gradient stops being finite.
  void run(int64_t until, const TrainerObserver& observer = {});
  void run(const TrainerObserver& observer = {}) { run(options_.schedule.steps, observer); }

  int64_t steps_done() const { return step_; }
  /// Whether the newest evaluation was good enough to end the run.
  bool stopped_early() const;

 private:
  StepReport train_step();
  struct Score {
    double loss = 0;
    int64_t correct = 0, counted = 0;
  };
  Score micro_batch(int64_t index);
  double matmul_flops(int64_t tokens, int64_t targets) const;
  void save();
  void recycle_now(MetricsLog& metrics, const TrainerObserver& observer);
  void evaluate_now(MetricsLog& metrics, const TrainerObserver& observer);
  nlohmann::json identity() const;

  Context ctx_;
  Stack& stack_;
  BatchSource& source_;
  std::vector<const EvaluationSet*> evaluations_;
  RunDirectory& directory_;
  TrainerOptions options_;
  Optimizer optimizer_;
  int64_t step_ = 0;
  double seconds_ = 0;
  ExpertLoads loads_;    // of the newest step
  double accuracy_ = 0;  // of the newest evaluation on the first set
  uint64_t metrics_bytes_ = 0;
};

}  // namespace braid
