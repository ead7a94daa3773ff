#pragma once

#include <cstdint>
#include <vector>

#include "braid/train/experts/layers.h"
#include "braid/train/optimizer.h"
#include "braid/train/source.h"

namespace braid {

struct RecycleOptions {
  int64_t every = 0;       // steps between two looks; 0: never
  double threshold = 0.1;  // relative_error up to which two experts are one
  int64_t rows = 1024;     // of the sample on which they are compared
  double noise = 0.01;     // by which the halves of a split expert part, of an element's mean size
};

/// What happened in one layer.
struct RecycledExpert {
  size_t sublayer = 0;
  ExpertPair pair;    // j went into i
  int64_t split = 0;  // the expert whose half is now in slot j
  double margin = 0;  // SplitRows::margin
};

/// In training: where two experts of a layer have become one function, merges them and gives the
/// slot that is freed to half of the expert with the largest load. The number of experts stays.
///
/// `batch` tells the loads, the functions and the routing; one pair a layer, the cheapest. The
/// merged expert takes slot i and row `fold_rows`; the expert h with the largest load but those two
/// is copied to slot j, its matrices plus noise, the copy's minus the same noise, with the rows
/// `split_rows`. What the step changes of the stack's function is what those two say they miss.
/// Moments of AdamW: of the merged expert the mean of both, aligned like the weights, by load; of
/// the halves those of h, as their weights are h's. A selection bias goes the same ways.
/// A layer of fewer than three experts, without a pair or without a load to split, is left alone.
/// A function of the stack, the moments, the batch and `rng`, bit for bit.
std::vector<RecycledExpert> recycle_experts(Context& ctx, Stack& stack, Optimizer& optimizer,
                                            const TrainingBatch& batch,
                                            const RecycleOptions& options, const Rng& rng);

}  // namespace braid
