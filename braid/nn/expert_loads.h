#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace braid {

/// How many tokens chose each expert, gathered over forward passes. Layer i is the i-th sublayer of
/// experts in the stack (SublayerConfig::ordinal).
///
/// Thread safety: one thread at a time.
struct ExpertLoads {
  struct Layer {
    std::vector<int64_t> tokens;  // (E), before any limit
    int64_t dropped = 0;          // choices that a limit left without an expert
    int64_t rerouted = 0;         // tokens whose choice was made again with their neighbourhood
    int64_t reroutable = 0;       // tokens for which it could have been
  };
  std::vector<Layer> layers;

  void add(int64_t layer, std::span<const int32_t> tokens, int64_t dropped) {
    Layer& sum = of(layer);
    sum.tokens.resize(tokens.size());
    for (size_t e = 0; e < tokens.size(); ++e) sum.tokens[e] += tokens[e];
    sum.dropped += dropped;
  }
  void add_rerouted(int64_t layer, int64_t rerouted, int64_t reroutable) {
    Layer& sum = of(layer);
    sum.rerouted += rerouted;
    sum.reroutable += reroutable;
  }

 private:
  Layer& of(int64_t layer) {
    if (static_cast<int64_t>(layers.size()) <= layer) layers.resize(static_cast<size_t>(layer) + 1);
    return layers[static_cast<size_t>(layer)];
  }
};

}  // namespace braid
