// Nemotron-H: one sublayer a layer, each behind its own norm: Mamba-2, attention without positions,
// a plain feed-forward, or a mixture of plain experts routed as DeepSeek-V3 routes, as in
// transformers' NemotronHForCausalLM.
#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr MoeKeys kMoe{.experts = "n_routed_experts",
                       .default_experts = 8,
                       .default_chosen = 2,
                       .default_hidden = 7688};
constexpr std::string_view kPatternKey = "hybrid_override_pattern";

// Newer configs list the kinds; older ones write a letter for each.
std::vector<std::string> kinds_of_pattern(const JsonObject& json) {
  const std::string pattern = json.text(kPatternKey);
  if (pattern.empty() || pattern.size() > static_cast<size_t>(kMaxLayers)) {
    json.refuse(kPatternKey, fmt::format("1 to {} letters", kMaxLayers));
  }
  std::vector<std::string> kinds;
  for (const char letter : pattern) {
    const char* kind = letter == 'M'   ? "mamba"
                       : letter == '*' ? "attention"
                       : letter == '-' ? "mlp"
                       : letter == 'E' ? "moe"
                                       : nullptr;
    if (kind == nullptr) json.refuse(kPatternKey, "letters among M, *, - and E");
    kinds.emplace_back(kind);
  }
  return kinds;
}

std::vector<std::string> layers_of(const JsonObject& json) {
  std::vector<std::string> kinds;
  if (json.has(kPatternKey)) kinds = kinds_of_pattern(json);
  for (const char* key : {"layers_block_type", "layer_types"}) {
    if (!json.has(key)) continue;
    const nlohmann::json& list = json.at(key, "a list of layer kinds");
    if (!list.is_array() || list.empty() || list.size() > static_cast<size_t>(kMaxLayers)) {
      json.refuse(key, fmt::format("a list of 1 to {} layer kinds", kMaxLayers));
    }
    const auto listed =
        layer_kinds(json, key, std::ssize(list), {"mamba", "attention", "mlp", "moe"});
    check(kinds.empty() || kinds == listed, ErrorKind::kFormat,
          "{}: {} differs from {}, want the same layers", json.source(), key, kPatternKey);
    kinds = listed;
  }
  if (kinds.empty()) json.at("layers_block_type", "a list of layer kinds");  // which refuses it
  if (json.integer_or("num_hidden_layers", std::ssize(kinds), 1, kMaxLayers) != std::ssize(kinds)) {
    json.refuse("num_hidden_layers", fmt::format("{}, as many as are listed", kinds.size()));
  }
  return kinds;
}

// The keys had longer names at first.
std::string_view either(const JsonObject& json, std::string_view older, std::string_view newer) {
  return json.has(older) ? older : newer;
}

SublayerSpec mamba_spec(const JsonObject& json, const ModelConfig& config) {
  want_silu(json, "mamba_hidden_act");
  const std::string_view limit = either(json, "mamba_dt_limit", "time_step_limit");
  SpecBuilder mamba = mamba2_options(json, config.width,
                                     {.heads = "mamba_num_heads",
                                      .head = "mamba_head_dim",
                                      .groups = either(json, "mamba_n_groups", "n_groups"),
                                      .state = "ssm_state_size",
                                      .conv = either(json, "mamba_d_conv", "conv_kernel"),
                                      .expand = {},
                                      .limit = limit,
                                      .bias = "use_bias",
                                      .conv_bias = either(json, "mamba_conv_bias", "use_conv_bias"),
                                      .default_head = 64,
                                      .default_groups = 8,
                                      .default_state = 128});
  // As with Zamba2, whose mixer this is: the reference clamps dt from below at time_step_min.
  const double dt_min =
      json.number_or(either(json, "mamba_dt_min", "time_step_min"), 0.001, 0, 1e6);
  const bool limited = json.has(limit) && json.numbers(limit, 0, SpecOptions::kInfinity)[0] > 0;
  if (!limited && dt_min > 0) mamba.set_number("dt_min", dt_min);
  return mamba.build();
}

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config) {
  constexpr const char* kOlderKey = "attention_head_dim";
  if (json.has("sliding_window")) json.refuse("sliding_window", "null: there is no window");
  const int64_t dim = json.integer_or(kOlderKey, 128, 1, kMaxWidth);
  if (json.has(kOlderKey) && json.integer_or("head_dim", dim, 1, kMaxWidth) != dim) {
    json.refuse(kOlderKey, describe(*json.find("head_dim")) + " as in head_dim");
  }
  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention_options(json, config, &attention, {.head_dim = dim, .kv_heads = 8, .positions = false});
  return attention.build();
}

// Named as our options name it.
std::string activation_of(const JsonObject& json) {
  const std::string act = json.text_or("mlp_hidden_act", "relu2");
  if (act != "relu2" && act != "relu" && act != "gelu" && act != "silu") {
    json.refuse("mlp_hidden_act", "relu2, relu, gelu or silu");
  }
  return act;
}

SublayerSpec mlp_spec(const JsonObject& json) {
  SpecBuilder mlp("mlp");
  mlp.set("hidden", json.integer("intermediate_size", 1, kMaxWidth));
  mlp.set_text("act", activation_of(json));
  if (json.flag_or("mlp_bias", false)) mlp.set("bias", 1);
  return mlp.build();
}

// The best topk_group of n_group groups of experts are chosen from.
void choose_groups(const JsonObject& json, SpecBuilder* moe) {
  const int64_t groups = json.integer_or("n_group", 1, 1, kMaxWidth);
  if (groups == 1) return;
  const int64_t experts = json.integer_or("n_routed_experts", kMoe.default_experts, 1, kMaxWidth);
  const int64_t chosen = json.integer_or(kMoe.chosen, kMoe.default_chosen, 1, experts);
  const int64_t keep = json.integer_or("topk_group", 1, 1, groups);
  if (experts % groups != 0) {
    json.refuse("n_group", fmt::format("a divisor of n_routed_experts, {}", experts));
  }
  check(keep * (experts / groups) >= chosen, ErrorKind::kFormat,
        "{}: topk_group is {}, want groups with at least {} experts, not {}", json.source(), keep,
        chosen, keep * (experts / groups));
  moe->set("groups", groups).set("keep", keep);
}

SublayerSpec moe_spec(const JsonObject& json, int64_t layers) {
  if (json.has("moe_latent_size")) {
    json.refuse("moe_latent_size", "null: experts that work in a latent space are not supported");
  }
  if (json.flag_or("mlp_bias", false)) json.refuse("mlp_bias", "false where there are experts");
  if (json.integer_or("n_shared_experts", 1, 0, kMaxWidth) != 1) {
    json.refuse("n_shared_experts", "1, of moe_shared_expert_intermediate_size");
  }
  MoeKeys keys = kMoe;
  keys.layers = layers;
  SpecBuilder moe = moe_options(json, keys);
  moe.set_text("act", activation_of(json)).set_text("router", "sigmoid");
  moe.set("norm", json.flag_or("norm_topk_prob", true) ? 1 : 0);
  const double scale = json.number_or("routed_scaling_factor", 1, -1e6, 1e6);
  if (scale != 1) moe.set_number("scale", scale);
  choose_groups(json, &moe);
  moe.set("select_bias", 1);
  moe.set("shared_hidden",
          json.integer_or("moe_shared_expert_intermediate_size", 7688, 1, kMaxWidth));
  return moe.build();
}

ModelConfig nemotron_h_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  config.norm_eps = json.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 4096, 1, kMaxPositions);
  const std::vector<std::string> kinds = layers_of(json);
  std::map<std::string, SublayerSpec> specs;  // only of the kinds there are
  for (const std::string& kind : kinds) {
    if (!specs.contains(kind)) {
      specs[kind] = kind == "mamba"       ? mamba_spec(json, config)
                    : kind == "attention" ? attention_spec(json, config)
                    : kind == "mlp"       ? mlp_spec(json)
                                          : moe_spec(json, std::ssize(kinds));
    }
    config.sublayers.push_back({{specs[kind]}});
  }
  return config;
}

WeightMap nemotron_h_weights(const ModelConfig& config) {
  constexpr MoeNames kNames{.router = "gate.weight",
                            .router_bias = "gate.e_score_correction_bias",
                            .experts = "experts.",
                            .shared = "shared_experts."};
  WeightMap map;
  map["embedding.weight"] = {{.name = "backbone.embeddings.weight"}};
  map["final_norm.weight"] = {{.name = "backbone.norm_f.weight"}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const SublayerSpec& spec = config.sublayers[i].branches.at(0);
    const std::string file = fmt::format("backbone.layers.{}.", i), mixer = file + "mixer.";
    const std::string norm = fmt::format("sublayers.{}.", i), native = norm + spec.name + ".";
    map[norm + "norm.weight"] = {{.name = file + "norm.weight"}};
    if (spec.name == "mamba2") {
      map_mamba2(native, mixer, &map);
    } else if (spec.name == "attn") {
      map_attention(native, mixer, spec, &map);
    } else if (spec.name == "moe") {
      map_moe(native, mixer, spec, kNames, &map);
    } else {
      map_ffn(native, mixer, {}, {.gated = false}, &map);
    }
  }
  return map;
}

// Layers that predict further tokens ahead.
bool nemotron_h_ignorable(std::string_view name) { return name.starts_with("mtp."); }

}  // namespace

const Family kNemotronHFamily{.model_type = "nemotron_h",
                              .config = nemotron_h_config,
                              .weights = nemotron_h_weights,
                              .ignorable = nemotron_h_ignorable};

}  // namespace braid
