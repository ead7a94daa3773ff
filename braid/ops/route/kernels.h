#pragma once

#include <cstdint>

#include "braid/ops/route/options.h"

namespace braid {

class ThreadPool;

struct RouteDims {
  int64_t tokens, experts;
  int64_t stride;  // elements between rows of logits
  RouteOptions options;
  int64_t k() const { return options.top_k; }
  int64_t group() const { return experts / options.groups; }
  /// Floats of scratch a worker needs.
  int64_t scratch() const { return 3 * experts + 4 * options.top_k + 2 * options.groups; }
};

struct RouteSequences {
  const int64_t* offsets;  // (S + 1)
  int64_t count;           // S
};

namespace cpu {

/// chosen (N, k), weights (N, k), load (E). bias may be null. `scratch` is (workers,
/// dims.scratch()). Returns in `bad` the first row that holds a logit which is not finite, N where
/// none does; such rows choose nothing.
void route(ThreadPool& threads, const RouteDims& dims, const float* logits, const float* bias,
           float* scratch, int32_t* chosen, float* weights, int32_t* load, int64_t* bad);

/// uncertain (N) <- 1 where the k-th best choice leads the next by less than `margin`, else 0.
/// dims.options.top_k is k + 1 here, the choices that are looked at.
void route_uncertain(ThreadPool& threads, const RouteDims& dims, float margin, const float* logits,
                     const float* bias, float* scratch, float* uncertain);

/// experts <- chosen with -1 where an expert has its `limit` of tokens already, and weight 0 there.
/// `taken` is scratch of (E).
void route_limit(ThreadPool& threads, const RouteDims& dims, int64_t limit, const int32_t* chosen,
                 int32_t* taken, int32_t* experts, float* weights);

/// pressure (S, E) <- the gradient of the balance and the sequence loss by the mean score of each
/// expert at each token of a sequence.
void route_pressure(ThreadPool& threads, const RouteDims& dims, const RouteSequences& sequences,
                    const int32_t* chosen, float* pressure);

/// dlogits (N, E) dense. `pressure` is null where neither of its losses counts; `experts` tells
/// which slots were dropped.
void route_vjp(ThreadPool& threads, const RouteDims& dims, const RouteSequences& sequences,
               const float* logits, const int32_t* chosen, const int32_t* experts,
               const float* pressure, const float* dweights, float* scratch, float* dlogits);

}  // namespace cpu
}  // namespace braid
