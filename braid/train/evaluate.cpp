#include "braid/train/evaluate.h"

#include <cmath>
#include <numbers>

#include "braid/core/error.h"

namespace braid {

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Context& ctx, const Stack& stack, const EvaluationSet& set,
                    int64_t batch_tokens,
                    const std::function<void(int64_t done, int64_t total)>& progress) {
  stack.check_causal("evaluation");
  const int64_t total = set.sequences();
  Evaluation result;
  double nats = 0;
  int64_t correct = 0;
  for (int64_t next = 0; next < total;) {
    TrainingBatch batch;
    do {
      set.append(next++, batch);
    } while (next < total && batch.batch.tokens() + set.length(next) <= batch_tokens);
    const CrossEntropyResult scores = predict(ctx, stack, batch);
    const Tensor losses = ctx.to_host(scores.token_losses), hits = ctx.to_host(scores.correct);
    // One chain over all targets, so that the sum does not depend on how they were batched.
    for (int64_t i = 0; i < losses.count(); ++i) nats += losses.f32()[i];
    for (int64_t i = 0; i < hits.count(); ++i) correct += hits.data<int32_t>()[i];
    result.targets += scores.counted;
    if (progress) progress(next, total);
  }
  check(result.targets > 0, ErrorKind::kFormat, "evaluation: {} has nothing to predict",
        set.name());
  const auto targets = static_cast<double>(result.targets);
  result.loss = nats / targets;
  result.accuracy = static_cast<double>(correct) / targets;
  result.bytes = set.bytes_per_target() * targets;
  if (result.bytes > 0) result.bits_per_byte = nats / std::numbers::ln2 / result.bytes;
  return result;
}

}  // namespace braid
