#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "braid/nn/spec.h"
#include "braid/train/tasks/draws.h"

namespace braid {

/// Every example of a task has these.
struct TaskShape {
  int64_t vocab = 0;    // ids are 0..vocab-1
  int64_t length = 0;   // tokens of an example
  int64_t answers = 0;  // positions whose target counts
};

/// A synthetic task on sequences: examples whose answers follow from what came before and from
/// nothing else, so that a stack's accuracy says what its mixers can keep in their state.
///
/// Thread safety: immutable.
class Task {
 public:
  explicit Task(const TaskShape& shape) : shape_(shape) {}
  virtual ~Task() = default;

  const TaskShape& shape() const { return shape_; }
  /// Writes one example. `tokens` and `targets` have shape().length entries; the targets come in as
  /// -1 and stay so where nothing is asked.
  virtual void write(Draws& draws, std::span<int32_t> tokens, std::span<int32_t> targets) const = 0;

 private:
  TaskShape shape_;
};

/// One per task, beside its definition.
struct TaskEntry {
  std::string_view name;
  std::string_view example;  // a small spec, for tests
  std::unique_ptr<Task> (*make)(SpecOptions& options);
};

/// Of every task, in the order of the table in task.cpp.
std::span<const TaskEntry> task_registry();

/// Their names, for help.
std::string task_names();

/// `mqar:pairs=8,len=128,vocab=512`. Refuses in one line with the column what is no task and sizes
/// that contradict each other.
std::unique_ptr<Task> make_task(std::string_view spec);

// The options that most tasks share, with their limits.
int64_t task_length(SpecOptions& options, int64_t fallback, int64_t min);
int64_t task_vocab(SpecOptions& options, int64_t fallback, int64_t min);

}  // namespace braid
