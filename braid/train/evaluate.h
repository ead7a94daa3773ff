#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "braid/core/context.h"
#include "braid/model/expert_parallel.h"
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

  /// The same over the targets at positions [i W, (i + 1) W) of their sequences, where a window W
  /// was asked for.
  struct Window {
    double loss = 0;
    int64_t targets = 0;
  };
  std::vector<Window> windows;

  double perplexity() const;
};

struct EvaluateOptions {
  int64_t batch_tokens = 8192;  // about so many go through the stack together: never a difference
  int64_t window = 0;           // of positions; 0: no windows
  /// Learns from every sequence while it is read.
  const Adaptation* adaptation = nullptr;
  ExpertLoads* loads = nullptr;  // as ForwardOptions
  SublayerWatch watch = {};      // as ForwardOptions
  /// Spreads the experts and the sequences over ranks, all of which get the same result, that of
  /// one process to the last bit.
  ExpertParallel* expert_parallel = nullptr;
  std::function<void(int64_t done, int64_t total)> progress = {};
};

/// How well `stack` predicts the sequences of a set.
Evaluation evaluate(Context& ctx, const Stack& stack, const EvaluationSet& set,
                    const EvaluateOptions& options = {});

}  // namespace braid
