// Mamba-2 as in transformers' Mamba2ForCausalLM. The gated norm spans all channels there, whatever
// the number of groups (the original code normalises group by group).
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr Mamba2Keys kKeys{.heads = "num_heads",
                           .head = "head_dim",
                           .groups = "n_groups",
                           .state = "state_size",
                           .conv = "conv_kernel",
                           .expand = "expand",
                           .bias = "use_bias",
                           .conv_bias = "use_conv_bias",
                           .default_head = 64,
                           .default_groups = 8,
                           .default_state = 128,
                           .norm_groups = 1};

ModelConfig mamba2_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const int64_t layers = json.integer_or("num_hidden_layers", 64, 1, kMaxLayers);
  const SublayerSpec mixer = mamba2_options(json, config.width, kKeys).build();
  config.sublayers.assign(static_cast<size_t>(layers), ParallelSpec{{mixer}});
  return config;
}

WeightMap mamba2_weights(const ModelConfig& config) {
  return backbone_weights(config, "mamba2", map_mamba2);
}

}  // namespace

const Family kMamba2Family{.model_type = "mamba2",
                           .config = mamba2_config,
                           .weights = mamba2_weights,
                           .ignorable = nothing_ignorable};

}  // namespace braid
