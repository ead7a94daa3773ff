#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct CrossEntropyDims {
  int64_t rows, classes, stride;  // elements between rows of the logits
  int64_t counted;
};

namespace cpu {

/// Writes token_losses (rows), correct (rows), loss (1) and stats (rows, 2): the maximum of a row
/// and the sum of its exponentials after the maximum is subtracted.
void cross_entropy(ThreadPool& threads, const CrossEntropyDims& dims, const float* logits,
                   const int32_t* targets, float* token_losses, int32_t* correct, float* stats,
                   float* loss);
/// logits <- dloss / counted (softmax(logits) - one_hot(target)); zero in rows not counted.
void cross_entropy_vjp(ThreadPool& threads, const CrossEntropyDims& dims, const int32_t* targets,
                       const float* stats, const float* dloss, float* logits);

}  // namespace cpu
}  // namespace braid
