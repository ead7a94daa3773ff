#include "braid/train/source.h"

#include <utility>

namespace braid {

CrossEntropyResult predict(Context& ctx, const Stack& stack, const TrainingBatch& batch,
                           ForwardOptions options) {
  std::vector<int64_t> rows;
  std::vector<int32_t> targets;
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] < 0) continue;
    rows.push_back(static_cast<int64_t>(i));
    targets.push_back(batch.targets[i]);
  }
  if (rows.size() < batch.targets.size()) options.rows = std::move(rows);
  const Tensor logits = stack.forward(ctx, batch.tokens, batch.batch, options);
  return softmax_cross_entropy(ctx, logits, targets);
}

}  // namespace braid
