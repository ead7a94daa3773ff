#include "braid/train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "braid/core/error.h"

namespace braid {

namespace {

// Sums of the losses (a row for each target that counts) by position.
void add_windows(const TrainingBatch& batch, const Tensor& losses, int64_t width,
                 std::vector<Evaluation::Window>* windows) {
  int64_t row = 0;
  for (int64_t s = 0; s < batch.batch.sequences(); ++s) {
    const int64_t begin = batch.batch.offsets[static_cast<size_t>(s)];
    for (int64_t i = 0; i < batch.batch.length(s); ++i) {
      if (batch.targets[static_cast<size_t>(begin + i)] < 0) continue;
      const auto at = static_cast<size_t>(i / width);
      if (windows->size() <= at) windows->resize(at + 1);
      (*windows)[at].loss += losses.f32()[row++];
      ++(*windows)[at].targets;
    }
  }
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Context& ctx, const Stack& stack, const EvaluationSet& set,
                    const EvaluateOptions& options) {
  stack.check_causal("evaluation");
  const int64_t total = set.sequences();
  Evaluation result;
  double nats = 0;
  int64_t correct = 0;
  for (int64_t next = 0; next < total;) {
    TrainingBatch batch;
    do {
      set.append(next++, batch);
    } while (next < total && batch.batch.tokens() + set.length(next) <= options.batch_tokens);
    const CrossEntropyResult scores =
        predict(ctx, stack, batch,
                {.loads = options.loads, .adaptation = options.adaptation, .watch = options.watch});
    const Tensor losses = ctx.to_host(scores.token_losses), hits = ctx.to_host(scores.correct);
    // One chain over all targets, so that the sum does not depend on how they were batched.
    for (int64_t i = 0; i < losses.count(); ++i) nats += losses.f32()[i];
    for (int64_t i = 0; i < hits.count(); ++i) correct += hits.data<int32_t>()[i];
    result.targets += scores.counted;
    if (options.window > 0) add_windows(batch, losses, options.window, &result.windows);
    if (options.progress) options.progress(next, total);
  }
  check(result.targets > 0, ErrorKind::kFormat, "evaluation: {} has nothing to predict",
        set.name());
  const auto targets = static_cast<double>(result.targets);
  result.loss = nats / targets;
  result.accuracy = static_cast<double>(correct) / targets;
  for (Evaluation::Window& window : result.windows) {
    window.loss /= static_cast<double>(std::max<int64_t>(window.targets, 1));
  }
  result.bytes = set.bytes_per_target() * targets;
  if (result.bytes > 0) result.bits_per_byte = nats / std::numbers::ln2 / result.bytes;
  return result;
}

}  // namespace braid
