#include "braid/train/tasks/task_source.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "braid/core/error.h"

namespace braid {
namespace {

// Apart from the streams that draw the weights from the same seed.
constexpr uint64_t kTaskStream = 0x7461736b73;

}  // namespace

void TaskExamples::append(int64_t index, TrainingBatch& batch) const {
  const size_t begin = batch.tokens.size();
  const auto length = static_cast<size_t>(task->shape().length);
  batch.tokens.resize(begin + length);
  batch.targets.resize(begin + length, -1);
  batch.batch.add(task->shape().length);
  Draws draws(Rng(seed)
                  .fork(kTaskStream)
                  .fork(static_cast<uint64_t>(split))
                  .fork(static_cast<uint64_t>(index)));
  task->write(draws, std::span(batch.tokens).subspan(begin),
              std::span(batch.targets).subspan(begin));
}

TaskSource::TaskSource(TaskExamples examples, int64_t batch)
    : examples_(std::move(examples)), batch_(batch) {
  const int64_t length = examples_.task->shape().length;
  check(batch > 0, "task: batch {}, want at least 1", batch);
  check(length <= std::numeric_limits<int32_t>::max() / batch,
        "task: a batch of {} x {} tokens is too large", batch, length);
}

TrainingBatch TaskSource::batch(int64_t index) {
  check(index >= 0, "task: batch {}, want at least 0", index);
  TrainingBatch out;
  out.tokens.reserve(static_cast<size_t>(tokens_per_batch()));
  out.targets.reserve(static_cast<size_t>(tokens_per_batch()));
  for (int64_t i = 0; i < batch_; ++i) examples_.append(index * batch_ + i, out);
  return out;
}

int64_t TaskSource::tokens_per_batch() const { return batch_ * examples_.task->shape().length; }

nlohmann::json TaskSource::identity() const {
  return {{"task", examples_.spec}, {"batch", batch_}, {"seed", examples_.seed}};
}

std::string TaskSource::describe(int64_t batches) const {
  return fmt::format("{} examples of {}", batches * batch_, examples_.spec);
}

TaskSet::TaskSet(TaskExamples examples, int64_t count)
    : examples_(std::move(examples)), count_(count) {
  check(count > 0, "task: {} examples to evaluate on, want at least 1", count);
}

}  // namespace braid
