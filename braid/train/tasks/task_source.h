#pragma once

#include <cstdint>
#include <string>

#include "braid/train/source.h"
#include "braid/train/tasks/task.h"

namespace braid {

/// Streams of examples that share none.
enum class TaskSplit : uint64_t { kTrain = 0, kHeldOut = 1 };

/// The examples of one split: number i is a pure function of (task, seed, split, i).
struct TaskExamples {
  std::string spec;
  std::shared_ptr<const Task> task;
  uint64_t seed = 0;
  TaskSplit split = TaskSplit::kTrain;

  TaskExamples(const std::string& text, uint64_t from_seed, TaskSplit of_split)
      : spec(text), task(make_task(text)), seed(from_seed), split(of_split) {}
  /// Adds example `index` to a batch, as one more sequence.
  void append(int64_t index, TrainingBatch& batch) const;
};

/// Training on examples without end: batch k is examples [k B, (k + 1) B).
class TaskSource final : public BatchSource {
 public:
  TaskSource(TaskExamples examples, int64_t batch);

  TrainingBatch batch(int64_t index) override;
  int64_t tokens_per_batch() const override;
  nlohmann::json identity() const override;
  std::string describe(int64_t batches) const override;

 private:
  TaskExamples examples_;
  int64_t batch_;
};

/// The first `count` examples.
class TaskSet final : public EvaluationSet {
 public:
  TaskSet(TaskExamples examples, int64_t count);

  std::string name() const override { return examples_.spec; }
  int64_t sequences() const override { return count_; }
  int64_t length(int64_t) const override { return examples_.task->shape().length; }
  void append(int64_t sequence, TrainingBatch& batch) const override {
    examples_.append(sequence, batch);
  }

 private:
  TaskExamples examples_;
  int64_t count_;
};

}  // namespace braid
