// Bamba: Mamba-2 with attention at a few layers, a SwiGLU in all, as in transformers'
// BambaForCausalLM. The gated norm spans all channels, whatever the number of groups.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// Which layers are attention: by index, or by a list of kinds; where both are given they agree.
std::vector<bool> attention_layers(const JsonObject& json, int64_t layers) {
  std::vector<bool> attention(static_cast<size_t>(layers));
  for (const int64_t i : json.integers_or_one("attn_layer_indices", 0, layers - 1)) {
    attention[static_cast<size_t>(i)] = true;
  }
  for (const char* key : {"layers_block_type", "layer_types"}) {
    if (!json.has(key)) continue;
    const auto kinds = layer_kinds(json, key, layers, {"mamba", "attention"});
    for (size_t i = 0; i < kinds.size(); ++i) {
      const bool is = kinds[i] == "attention";
      check(!json.has("attn_layer_indices") || is == attention[i], ErrorKind::kFormat,
            "{}: {}[{}] is \"{}\", want {} as in attn_layer_indices", json.source(), key, i,
            kinds[i], is ? "mamba" : "attention");
      attention[i] = is;
    }
  }
  return attention;
}

ModelConfig bamba_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-5, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 262144, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);

  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention_options(json, config, &attention, /*partial=*/0.5);
  const SublayerSpec attn = attention.build();
  const SublayerSpec mamba = mamba2_options(json, config.width, {.norm_groups = 1}).build();
  const SublayerSpec swiglu = swiglu_options(json).build();
  for (const bool is_attention : attention_layers(json, layers)) {
    config.sublayers.push_back({{is_attention ? attn : mamba}});
    config.sublayers.push_back({{swiglu}});
  }
  return config;
}

WeightMap bamba_weights(const ModelConfig& config) {
  return layer_weights(config, {.ffn_norm = "pre_ff_layernorm",
                                .ffn = "feed_forward",
                                .final_norm = "model.final_layernorm.weight"});
}

}  // namespace

const Family kBambaFamily{.model_type = "bamba",
                          .config = bamba_config,
                          .weights = bamba_weights,
                          .ignorable = decoder_ignorable};

}  // namespace braid
