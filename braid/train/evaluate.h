#pragma once

#include <cstdint>

#include "braid/core/context.h"
#include "braid/model/stack.h"
#include "braid/train/dataset.h"

namespace braid {

struct EvaluationOptions {
  int64_t length = 512;         // documents are read in pieces of at most this many tokens
  int64_t batch_tokens = 8192;  // that go through the stack together; never changes the result
  int64_t max_tokens = 0;       // an evenly spread selection of about this many; 0: everything
};

struct Evaluation {
  double loss = 0;           // mean over the predicted tokens, nats
  double perplexity = 0;     // exp(loss)
  double bits_per_byte = 0;  // of the text; the end of a document counts as a token, not as a byte
  int64_t tokens = 0;        // predicted
  double bytes = 0;          // of the text these stand for
};

/// How well `stack` predicts a corpus. Every piece is a sequence of its own, as in training. With
/// `max_tokens` the bytes are those of the whole corpus in proportion to the tokens read.
Evaluation evaluate(Context& ctx, const Stack& stack, const Dataset& dataset,
                    const EvaluationOptions& options, const Progress& progress = {});

}  // namespace braid
