// Mixtral: Mistral's layers with a mixture of experts for a feed-forward, as in transformers'
// MixtralForCausalLM.
#include "braid/model/families/family.h"

namespace braid {
namespace {

ModelConfig mixtral_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-5, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 131072, 1, kMaxPositions);
  const int64_t window = json.integer_or("sliding_window", 0, 1, SpecOptions::kMaxInteger);
  SpecBuilder attention(window > 0 ? "swa" : "attn");
  if (window > 0) attention.value(window);
  attention_options(json, config, &attention, {.theta = 1e6, .kv_heads = 8});

  SpecBuilder moe = moe_options(json, {.experts = "num_local_experts",
                                       .hidden = "intermediate_size",
                                       .default_experts = 8,
                                       .default_chosen = 2});
  moe.set("norm", 1);
  const double jitter = json.number_or("router_jitter_noise", 0, 0, 1);
  if (jitter > 0) moe.set_number("jitter", jitter);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  const SublayerSpec mixer = attention.build(), ffn = moe.build();
  for (int64_t i = 0; i < layers; ++i) {
    config.sublayers.push_back({{mixer}});
    config.sublayers.push_back({{ffn}});
  }
  return config;
}

WeightMap mixtral_weights(const ModelConfig& config) {
  return layer_weights(config, {.moe = {.router = "block_sparse_moe.gate.weight",
                                        .experts = "block_sparse_moe.experts.",
                                        .ffn = {.gate = "w1", .up = "w3", .down = "w2"}}});
}

}  // namespace

const Family kMixtralFamily{.model_type = "mixtral",
                            .config = mixtral_config,
                            .weights = mixtral_weights,
                            .ignorable = decoder_ignorable};

}  // namespace braid
