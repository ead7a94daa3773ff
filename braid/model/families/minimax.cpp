// MiniMax-01: lightning attention with softmax attention at some layers, each followed by a mixture
// of experts; what a sublayer makes is added to the normed state, as in transformers'
// MiniMaxForCausalLM.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "braid/model/families/family.h"

namespace braid {
namespace {

// x = alpha norm(x) + beta f(norm(x)).
SublayerSpec with_residual(const JsonObject& json, std::string_view prefix, SpecBuilder builder) {
  const auto factor = [&](std::string_view name) {
    return json.number_or(fmt::format("{}_{}_factor", prefix, name), 1, -1e6, 1e6);
  };
  builder.set_text("residual", "normed");
  if (const double alpha = factor("alpha"); alpha != 1) builder.set_number("residual_scale", alpha);
  if (const double beta = factor("beta"); beta != 1) builder.set_number("out_scale", beta);
  return builder.build();
}

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config) {
  AttentionDefaults defaults{.theta = 1e6, .kv_heads = 8};
  // The authors' own key of the share of a head that turns; transformers has a factor instead.
  if (json.has("rotary_dim") && !json.has("partial_rotary_factor")) {
    const int64_t heads = json.integer("num_attention_heads", 1, kMaxWidth);
    const int64_t dim = json.integer_or("head_dim", config.width / heads, 1, kMaxWidth);
    const int64_t rotary = json.integer("rotary_dim", 2, dim);
    defaults.partial = static_cast<double>(rotary) / static_cast<double>(dim);
  }
  const int64_t window = json.integer_or("sliding_window", 0, 1, SpecOptions::kMaxInteger);
  SpecBuilder attention(window > 0 ? "swa" : "attn");
  if (window > 0) attention.value(window);
  attention_options(json, config, &attention, defaults);
  return with_residual(json, "full_attn", std::move(attention));
}

// The decay depends on the layer's place among all layers.
SublayerSpec lightning_spec(const JsonObject& json, const ModelConfig& config, int64_t layer,
                            int64_t layers) {
  const int64_t heads = json.integer("num_attention_heads", 1, 4096);
  SpecBuilder lightning("lightning");
  lightning.set("heads", heads)
      .set("dim", json.integer_or("head_dim", config.width / heads, 1, 65536))
      .set_text("slopes", "geometric")
      .set_number("decay",
                  1 - static_cast<double>(layer) / (static_cast<double>(layers - 1) + 1e-5) + 1e-5)
      .set("value_silu", 1)
      .set_text("gate", "sigmoid")
      .set("norm_weight", 1);
  return with_residual(json, "linear_attn", std::move(lightning));
}

SublayerSpec moe_spec(const JsonObject& json) {
  SpecBuilder moe = moe_options(json, {.experts = "num_local_experts",
                                       .hidden = "intermediate_size",
                                       .default_experts = 8,
                                       .default_chosen = 2});
  moe.set("norm", 1);
  const double jitter = json.number_or("router_jitter_noise", 0, 0, 1);
  if (jitter > 0) moe.set_number("jitter", jitter);
  return with_residual(json, "mlp", std::move(moe));
}

ModelConfig minimax_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-5, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 131072, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  // Without a list the two take turns, attention first.
  std::vector<std::string> kinds;
  for (int64_t i = 0; i < layers; ++i) kinds.emplace_back(i % 2 == 0 ? "attention" : "mamba");
  if (json.has("layer_types")) {
    kinds = layer_kinds(json, "layer_types", layers, {"mamba", "attention"});
  }
  const SublayerSpec attention = attention_spec(json, config), moe = moe_spec(json);
  for (int64_t i = 0; i < layers; ++i) {
    const bool full = kinds[static_cast<size_t>(i)] == "attention";
    config.sublayers.push_back({{full ? attention : lightning_spec(json, config, i, layers)}});
    config.sublayers.push_back({{moe}});
  }
  return config;
}

// qkv_proj holds, head by head, the query, the key and the value.
void map_lightning(const std::string& native, const std::string& file, const SublayerSpec& spec,
                   WeightMap* map) {
  SpecOptions options(spec);
  const int64_t dim = options.integer("dim", 0), inner = options.integer("heads", 0) * dim;
  std::vector<WeightPart>& qkvu = (*map)[native + "qkvu_proj.weight"];
  for (int64_t i = 0; i < 3; ++i) {
    qkvu.push_back({.name = file + "qkv_proj.weight",
                    .rows = inner,
                    .runs = {.block = 3 * dim, .first = i * dim, .count = dim}});
  }
  qkvu.push_back({.name = file + "output_gate.weight", .rows = inner});
  for (const char* name : {"norm.weight", "out_proj.weight"}) {
    (*map)[native + name] = {{.name = file + name}};
  }
}

WeightMap minimax_weights(const ModelConfig& config) {
  WeightMap map = layer_weights(config, {.moe = {.router = "block_sparse_moe.gate.weight",
                                                 .experts = "block_sparse_moe.experts.",
                                                 .ffn = {.gate = "w1", .up = "w3", .down = "w2"}}});
  for (size_t i = 0; i < config.sublayers.size(); i += 2) {
    const SublayerSpec& spec = config.sublayers[i].branches.at(0);
    if (spec.name != "lightning") continue;
    map_lightning(fmt::format("sublayers.{}.lightning.", i),
                  fmt::format("model.layers.{}.self_attn.", i / 2), spec, &map);
  }
  return map;
}

// The decays, which follow from the layer and the head.
bool minimax_ignorable(std::string_view name) {
  for (const char* end : {".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay"}) {
    if (name.starts_with("model.layers.") && name.ends_with(end)) return true;
  }
  return decoder_ignorable(name);
}

}  // namespace

const Family kMiniMaxFamily{.model_type = "minimax",
                            .config = minimax_config,
                            .weights = minimax_weights,
                            .ignorable = minimax_ignorable};

}  // namespace braid
