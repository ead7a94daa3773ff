// Qwen3, dense and with experts: Llama's layers with a norm over every head of queries and keys,
// as in transformers' Qwen3ForCausalLM and Qwen3MoeForCausalLM.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/model/families/family.h"

namespace braid {
namespace {

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config, int64_t window,
                            const AttentionDefaults& defaults) {
  SpecBuilder attention(window > 0 ? "swa" : "attn");
  if (window > 0) attention.value(window);
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention.set("qk_norm", 1);
  attention_options(json, config, &attention, defaults);
  return attention.build();
}

// What both read first; 0 where no layer has a window.
int64_t common_keys(const JsonObject& json, ModelConfig* config) {
  *config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config->norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config->max_context = json.integer_or("max_position_embeddings", 32768, 1, kMaxPositions);
  if (!json.flag_or("use_sliding_window", false)) return 0;
  const bool written = json.value().contains("sliding_window");
  return json.integer_or("sliding_window", written ? 0 : 4096, 1, SpecOptions::kMaxInteger);
}

SublayerSpec dense_ffn(const JsonObject& json) {
  return SpecBuilder("swiglu")
      .set("hidden", json.integer("intermediate_size", 1, kMaxWidth))
      .build();
}

ModelConfig qwen3_config(const JsonObject& json) {
  ModelConfig config;
  const int64_t window = common_keys(json, &config);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  const AttentionDefaults defaults{.head_dim = 128, .kv_heads = 32};
  const SublayerSpec full = attention_spec(json, config, 0, defaults);
  const SublayerSpec sliding = attention_spec(json, config, window, defaults);
  // Without a list the first max_window_layers see everything.
  std::vector<std::string> kinds(static_cast<size_t>(layers), "sliding_attention");
  const int64_t whole = json.integer_or("max_window_layers", 28, 0, kMaxPositions);
  std::fill_n(kinds.begin(), std::min(whole, layers), "attention");
  if (json.has("layer_types")) {
    kinds = layer_kinds(json, "layer_types", layers, {"attention", "sliding_attention"});
    const bool slides = std::ranges::find(kinds, "sliding_attention") != kinds.end();
    if (slides && window == 0) json.refuse("layer_types", "no sliding_attention without a window");
  }
  const SublayerSpec ffn = dense_ffn(json);
  for (const std::string& kind : kinds) {
    config.sublayers.push_back({{kind == "attention" ? full : sliding}});
    config.sublayers.push_back({{ffn}});
  }
  return config;
}

ModelConfig qwen3_moe_config(const JsonObject& json) {
  ModelConfig config;
  const int64_t window = common_keys(json, &config);
  const int64_t layers = json.integer_or("num_hidden_layers", 24, 1, kMaxLayers);
  const SublayerSpec mixer = attention_spec(json, config, window, {.kv_heads = 4});
  constexpr MoeKeys kKeys{.default_experts = 128, .default_chosen = 8, .default_hidden = 768};
  const auto moe = [&] {
    const bool norm = json.flag_or("norm_topk_prob", false);
    return moe_options(json, kKeys).set("norm", norm ? 1 : 0).build();
  };
  for (const SublayerSpec& ffn :
       sparse_or_dense(json, kKeys, layers, moe, [&] { return dense_ffn(json); })) {
    config.sublayers.push_back({{mixer}});
    config.sublayers.push_back({{ffn}});
  }
  return config;
}

}  // namespace

const Family kQwen3Family{.model_type = "qwen3",
                          .config = qwen3_config,
                          .weights = decoder_weights,
                          .ignorable = decoder_ignorable};

const Family kQwen3MoeFamily{.model_type = "qwen3_moe",
                             .config = qwen3_moe_config,
                             .weights = decoder_weights,
                             .ignorable = decoder_ignorable};

}  // namespace braid
