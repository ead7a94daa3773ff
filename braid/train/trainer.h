#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "braid/core/context.h"
#include "braid/model/stack.h"
#include "braid/train/evaluate.h"
#include "braid/train/loader.h"
#include "braid/train/optimizer.h"
#include "braid/train/run_directory.h"
#include "braid/train/schedule.h"

namespace braid {

struct TrainerOptions {
  LoaderOptions loader;
  int64_t accumulate = 1;  // batches whose gradients make one step
  Schedule schedule;       // its `steps` is the length of the run
  OptimizerOptions optimizer;
  int64_t save_every = 500;
  int64_t eval_every = 500;
  int64_t eval_tokens = 0;  // of the validation text, evenly spread; 0: all of it
  /// Matrix-product FLOP/s this machine reaches, for the share in the metrics; 0: not measured.
  double gemm_peak_flops = 0;
};

struct StepReport {
  int64_t step = 0;  // steps done
  double loss = 0;   // nats a token
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_s = 0;
  double gemm_share = 0;  // of the peak, counting matrix products alone
  double seconds = 0;     // since the run began, pauses between resumptions left out
};

/// Who wants to look on. Either may be empty.
struct TrainerObserver {
  std::function<void(const StepReport&)> on_step;
  std::function<void(int64_t step, const Evaluation&)> on_evaluation;
};

/// Owns the loop: batch -> Stack.forward under a tape -> loss -> backward -> clip -> step.
///
/// A run is a function of its options, data and stack alone. Killed at any instant and resumed from
/// its directory, with any number of threads, it ends in the same bits.
///
/// Thread safety: one thread at a time.
class Trainer {
 public:
  /// `stack` is trainable and initialised. All references must outlive the trainer; `valid` may be
  /// null.
  Trainer(Context& ctx, Stack& stack, const Dataset& train, const Dataset* valid,
          RunDirectory& directory, const TrainerOptions& options);

  /// Goes on from the newest checkpoint. False if there is none. Throws Error(kUsage) where it
  /// belongs to another stack, corpus, batch or seed.
  bool resume();

  /// Trains until `until` steps are done (the end of the schedule if there are fewer), writing
  /// metrics, checkpoints and, with them, the model directory. Throws Error(kUsage) if the loss or
  /// the gradient stops being finite.
  void run(int64_t until, const TrainerObserver& observer = {});
  void run(const TrainerObserver& observer = {}) { run(options_.schedule.steps, observer); }

  int64_t steps_done() const { return step_; }

 private:
  StepReport train_step();
  double micro_batch(int64_t index);
  void save();
  void evaluate_now(MetricsLog& metrics, const TrainerObserver& observer);
  nlohmann::json identity() const;

  Context ctx_;
  Stack& stack_;
  const Dataset& train_;
  const Dataset* valid_;
  RunDirectory& directory_;
  TrainerOptions options_;
  Loader loader_;
  Optimizer optimizer_;
  int64_t step_ = 0;
  double seconds_ = 0;
  uint64_t metrics_bytes_ = 0;
};

}  // namespace braid
