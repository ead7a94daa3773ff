#pragma once

#include <cstdint>
#include <functional>

#include "braid/core/context.h"
#include "braid/model/stack.h"
#include "braid/train/source.h"

namespace braid {

struct Evaluation {
  double loss = 0;      // mean over the targets that count, nats
  double accuracy = 0;  // share of them that the stack holds likelier than all else
  int64_t targets = 0;
  // Of text; 0 where the set has none.
  double bytes = 0;          // that the targets stand for
  double bits_per_byte = 0;  // the end of a document counts as a token, not as a byte

  double perplexity() const;
};

/// How well `stack` predicts the sequences of a set. About `batch_tokens` of them go through the
/// stack together, which never changes the result.
Evaluation evaluate(Context& ctx, const Stack& stack, const EvaluationSet& set,
                    int64_t batch_tokens = 8192,
                    const std::function<void(int64_t done, int64_t total)>& progress = {});

}  // namespace braid
