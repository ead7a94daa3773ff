#pragma once

#include "braid/nn/modules.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/route/options.h"

namespace braid {

/// The second look of a router: where a token's own state leaves the choice of experts close, what
/// the tokens before it were decides with it. Route, then recompute.
///
///   s_t  = exp(-delta) s_{t-1} + delta P x_t      delta = softplus(context_decay), by channel
///   l'_t = l_t + W_c norm(s_t)                    where route_uncertain(l_t, TAU)
///   l'_t = l_t                                    elsewhere
///
/// norm is the root mean square one, without weights. The summary s_t is causal: it holds the token
/// and all before it, each channel with a memory of about 1 / delta tokens, spread evenly in the
/// logarithm from 1 to `window` at the start. Every token feeds s, whoever decides, so a token's
/// choice depends neither on the batch nor on the cut. W_c starts at zero: training begins as
/// plain routing does. Which of the two logits decides is a constant of the gradient.
///
/// Options of moe: reroute=TAU (absent: none of this), context (r, 32), window (64). TAU is a
/// difference of choice scores: of probabilities, or of logits with router=selected.
/// Parameters, all float32: context.weight (r, D), context_decay (r), reroute.weight (E, r).
/// State: context (1, r), float32. Why so and what it costs: docs/experts.md.
class Reroute {
 public:
  /// Reads the options; refuses where a token has nobody else to choose.
  Reroute(const SublayerConfig& config, int64_t experts, const RouteOptions& routing,
          SpecOptions& options);

  struct Decided {
    Tensor logits;     // (N, E)
    Tensor uncertain;  // (N) 1 where the neighbourhood took part, else 0
  };
  /// x (N, D) the sublayer's rows, logits (N, E) the router's own, selection_bias (E) or absent.
  Decided decide(Context& ctx, const Tensor& x, const Tensor& logits, const Tensor& selection_bias,
                 const SequenceBatch& batch, const LayerState* state) const;
  StateSpec state_spec() const;
  void collect(std::vector<Parameter*>& out);
  double matmul_flops() const;

 private:
  Tensor summary(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                 const LayerState* state) const;  // (N, r)

  RouteOptions routing_;
  float margin_;  // TAU
  float norm_eps_;
  int64_t channels_;  // r
  Linear context_, reroute_;
  Parameter decay_;
};

}  // namespace braid
