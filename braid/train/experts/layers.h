#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "braid/model/stack.h"
#include "braid/ops/experts/experts.h"
#include "braid/ops/route/options.h"
#include "braid/train/experts/alignment.h"
#include "braid/train/experts/router_rows.h"

namespace braid {

/// One sublayer of experts of a stack. Refers to the stack's parameters.
struct ExpertLayer {
  size_t sublayer = 0, branch = 0;  // its place in ModelConfig::sublayers
  int64_t ordinal = 0;              // its place in ExpertLoads
  std::string prefix;               // of its parameters' names, "sublayers.3.moe."
  RouteOptions routing;             // without what only training asks for
  ExpertActivation activation = ExpertActivation::kSwiglu;
  double in_scale = 1;  // of the rows that enter the sublayer
  Parameter* router = nullptr;
  Parameter* bias = nullptr;        // null without a selection bias
  std::vector<Parameter*> in, out;  // (E)

  int64_t experts() const { return static_cast<int64_t>(in.size()); }
  int64_t width() const { return router->shape[1]; }
};
/// Refuses layers that route again with a token's neighbourhood: what is merged and split here is
/// sampled by rows of a router that reads one token.
std::vector<ExpertLayer> expert_layers(const Stack& stack);

/// A parameter's values on the host as float32, trainable stack or not.
Tensor host_values(Context& ctx, const Parameter& parameter);
ExpertMatrices host_expert(Context& ctx, const ExpertLayer& layer, int64_t e);

/// A bounded sample of the rows that enter each layer in a forward pass, or several in a row:
/// `rows` of the `tokens` that are to pass, one drawn from each of as many equal stretches (all of
/// them where there are no more). Pass `watch()` as ForwardOptions::watch.
///
/// Thread safety: one thread at a time. The watch refers to this object and to `ctx`.
class LayerSampler {
 public:
  LayerSampler(Context& ctx, const std::vector<ExpertLayer>& layers, int64_t tokens, int64_t rows,
               const Rng& rng);
  SublayerWatch watch();
  /// (S, D) on the device, after the pass.
  Tensor rows(size_t layer) const;

 private:
  struct Layer {
    size_t sublayer = 0;
    float in_scale = 1;
    int64_t passed = 0;  // tokens
    size_t next = 0;     // position to be taken
    std::vector<Tensor> parts;
  };
  Context& ctx_;
  std::vector<int64_t> positions_;  // ascending
  std::vector<Layer> layers_;
};

/// The values that decide where a layer's tokens go, on the host.
struct RouterValues {
  Tensor weight;  // (E, D)
  Tensor bias;    // (E) or absent
};
RouterValues host_router(Context& ctx, const ExpertLayer& layer);
/// What such a router makes of rows x (S, D); expert `without` is never chosen.
RouterSample sample_router(Context& ctx, const Tensor& x, const RouterValues& router,
                           const RouteOptions& routing, int64_t without = -1);

/// What all experts of a layer make of a sample.
struct LayerOutputs {
  std::vector<ExpertOutputs> experts;  // (E)
  std::vector<double> errors;          // relative_errors of their y
};
LayerOutputs measure_experts(Context& ctx, const ExpertLayer& layer, const Tensor& x);

/// Two experts, i < j, that may become one.
struct ExpertPair {
  int64_t i = 0, j = 0;
  double error = 0;  // relative_error
  double cost = 0;   // error^2 times l_i l_j / (l_i + l_j), the loads as shares of the tokens
};
/// Pairs whose error is at most `threshold`, by rising cost: what a token's outputs move by, in
/// squares, when both experts become their mean by load (Ward, JASA 58 (1963)). Equal costs, such
/// as those of experts without a load, go by error.
std::vector<ExpertPair> mergeable_pairs(const LayerOutputs& outputs,
                                        const std::vector<int64_t>& loads, int64_t tokens,
                                        double threshold);

/// The expert that two become, and its router row. `share` is j's part of it, by load. Of the rows
/// that fold_rows gives for some lifts, the one with which the layer's outputs on the sample move
/// least.
struct MergedExpert {
  double share = 0;
  Alignment alignment;  // of j's units to i's
  ExpertMatrices matrices;
  std::vector<float> row;  // (D)
  float bias = 0;
};
MergedExpert merge_pair(Context& ctx, const ExpertLayer& layer, const ExpertPair& pair,
                        const LayerOutputs& outputs, const RouterValues& router,
                        const RouterSample& sample, const std::vector<int64_t>& loads);

}  // namespace braid
