// Granite 4: Mamba-2 or attention, then a mixture of experts beside a feed-forward that every token
// takes, with muP's multipliers, as in transformers' GraniteMoeHybridForCausalLM.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/model/families/family.h"

namespace braid {
namespace {

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config, double residual) {
  constexpr const char* kKey = "position_embedding_type";
  const std::string positions = json.text_or(kKey, "nope");
  if (positions != "nope" && positions != "rope") json.refuse(kKey, "null, \"nope\" or \"rope\"");
  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention_options(json, config, &attention, {.positions = positions == "rope"});
  attention.set_number("scale", json.number_or("attention_multiplier", 1, 1e-6, 1e6));
  if (residual != 1) attention.set_number("out_scale", residual);
  return attention.build();
}

ParallelSpec feed_forward(const JsonObject& json, double residual) {
  constexpr MoeKeys kKeys{.experts = "num_local_experts",
                          .hidden = "intermediate_size",
                          .default_experts = 8,
                          .default_chosen = 2};
  ParallelSpec out;
  if (has_experts(json, kKeys)) {
    SpecBuilder moe = moe_options(json, kKeys);
    moe.set_text("router", "selected");
    if (residual != 1) moe.set_number("out_scale", residual);
    out.branches.push_back(moe.build());
  }
  SpecBuilder shared("swiglu");
  shared.set("hidden", json.integer_or("shared_intermediate_size", 1024, 1, kMaxWidth));
  if (residual != 1) shared.set_number("out_scale", residual);
  out.branches.push_back(shared.build());
  return out;
}

ModelConfig granite_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  config.embedding_scale = json.number_or("embedding_multiplier", 1, -1e6, 1e6);
  config.logit_scale = 1 / json.number_or("logits_scaling", 1, 1e-6, 1e6);
  if (json.text_or("normalization_function", "rmsnorm") != "rmsnorm") {
    json.refuse("normalization_function", "\"rmsnorm\"");
  }
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  std::vector<std::string> kinds(static_cast<size_t>(layers), "mamba");
  const char* kinds_key = json.has("layer_types") ? "layer_types" : "layers_block_type";
  if (json.has(kinds_key)) kinds = layer_kinds(json, kinds_key, layers, {"mamba", "attention"});

  const double residual = json.number_or("residual_multiplier", 1, -1e6, 1e6);
  const auto has = [&](const char* kind) { return std::ranges::find(kinds, kind) != kinds.end(); };
  SublayerSpec attn, mamba;
  if (has("attention")) attn = attention_spec(json, config, residual);
  if (has("mamba")) {
    SpecBuilder builder = mamba2_options(json, config.width, {.norm_groups = 1});
    if (residual != 1) builder.set_number("out_scale", residual);
    mamba = builder.build();
  }
  const ParallelSpec ffn = feed_forward(json, residual);
  for (const std::string& kind : kinds) {
    config.sublayers.push_back({{kind == "attention" ? attn : mamba}});
    config.sublayers.push_back(ffn);
  }
  return config;
}

WeightMap granite_weights(const ModelConfig& config) {
  return layer_weights(config,
                       {.ffn = "shared_mlp",
                        .ffn_parts = {.gate = {}, .up = "input_linear", .down = "output_linear"},
                        .moe = {.router = "block_sparse_moe.router.layer.weight",
                                .fused_in = "block_sparse_moe.input_linear.weight",
                                .fused_out = "block_sparse_moe.output_linear.weight"}});
}

}  // namespace

const Family kGraniteMoeHybridFamily{.model_type = "granitemoehybrid",
                                     .config = granite_config,
                                     .weights = granite_weights,
                                     .ignorable = decoder_ignorable};

}  // namespace braid
