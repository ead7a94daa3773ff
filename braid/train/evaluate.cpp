#include "braid/train/evaluate.h"

#include <cmath>
#include <numbers>

#include "braid/core/error.h"
#include "braid/ops/cross_entropy/cross_entropy.h"
#include "braid/train/loader.h"

namespace braid {

Evaluation evaluate(Context& ctx, const Stack& stack, const Dataset& dataset,
                    const EvaluationOptions& options, const Progress& progress) {
  const auto pieces = evaluation_pieces(dataset, options.length, options.max_tokens);
  int64_t total = 0;
  for (const Piece& piece : pieces) total += piece.length;
  double nats = 0;
  int64_t tokens = 0;
  for (size_t next = 0; next < pieces.size();) {
    TrainingBatch batch;
    do {
      append(dataset, pieces[next++], batch);
    } while (next < pieces.size() &&
             batch.batch.tokens() + pieces[next].length <= options.batch_tokens);
    const Tensor logits = stack.forward(ctx, batch.tokens, batch.batch);
    const Tensor losses =
        ctx.to_host(softmax_cross_entropy(ctx, logits, batch.targets).token_losses);
    // One chain over all tokens, so that the sum does not depend on how they were batched.
    for (int64_t i = 0; i < losses.count(); ++i) nats += losses.f32()[i];
    tokens += batch.batch.tokens();
    if (progress) progress(tokens, total);
  }
  Evaluation result{.tokens = tokens};
  result.loss = nats / static_cast<double>(tokens);
  result.perplexity = std::exp(result.loss);
  result.bytes = static_cast<double>(dataset.text_bytes()) * static_cast<double>(tokens) /
                 static_cast<double>(dataset.predictions());
  check(result.bytes > 0, ErrorKind::kFormat, "evaluation: the corpus has no text");
  result.bits_per_byte = nats / std::numbers::ln2 / result.bytes;
  return result;
}

}  // namespace braid
