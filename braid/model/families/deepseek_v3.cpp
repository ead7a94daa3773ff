// DeepSeek-V3: config.json and tensors as in transformers' DeepseekV3ForCausalLM and as published.
// Latent attention; the first layers are dense, the others mixtures of experts.
#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// A key whose null means that there is none of it, and whose absence the default.
int64_t or_none(const JsonObject& json, std::string_view key, int64_t fallback, int64_t max) {
  if (json.has(key)) return json.integer(key, 0, max);
  return json.value().contains(std::string(key)) ? 0 : fallback;
}

void want(const JsonObject& json, std::string_view key, int64_t wanted, std::string_view what) {
  if (json.integer_or(key, wanted, 0, kMaxWidth) != wanted) {
    json.refuse(key, fmt::format("{}, as {}", wanted, what));
  }
}

void want_text(const JsonObject& json, std::string_view key, std::string_view wanted) {
  if (json.text_or(key, wanted) != wanted) json.refuse(key, quote(wanted));
}

// The scores carry the square of what `mscale_all_dim` makes of a stretched context.
void score_options(const JsonObject& json, SpecBuilder* mla) {
  const char* key = json.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!json.has(key)) return;
  const JsonObject scaling = json.object(key);
  if (scaling.number_or("partial_rotary_factor", 1, 0, 1) != 1) {
    scaling.refuse("partial_rotary_factor", "1");
  }
  const std::string kind = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  const double all = scaling.number_or("mscale_all_dim", 0, 0, 1e6);
  if (kind != "default" && all > 0) mla->set_number("mscale_all_dim", all);
}

SublayerSpec mla_options(const JsonObject& json, const ModelConfig& config) {
  const int64_t heads = json.integer("num_attention_heads", 1, kMaxWidth);
  want(json, "num_key_value_heads", heads, "num_attention_heads");
  const int64_t nope = json.integer_or("qk_nope_head_dim", 128, 1, kMaxWidth);
  const int64_t rope = json.integer_or("qk_rope_head_dim", 64, 2, kMaxWidth);
  want(json, "qk_head_dim", nope + rope, "qk_nope_head_dim + qk_rope_head_dim");
  want(json, "head_dim", rope, "qk_rope_head_dim");  // the rotated part, to transformers
  SpecBuilder mla("mla");
  mla.set("heads", heads)
      .set("q_rank", or_none(json, "q_lora_rank", 1536, kMaxWidth))
      .set("kv_rank", json.integer_or("kv_lora_rank", 512, 1, kMaxWidth))
      .set("nope", nope)
      .set("rope_dim", rope)
      .set("value", json.integer_or("v_head_dim", 128, 1, kMaxWidth));
  if (json.flag_or("attention_bias", false)) mla.set("bias", 1);
  if (!json.flag_or("rope_interleave", true)) mla.set("interleaved", 0);
  if (json.number_or("partial_rotary_factor", 1, 0, 1) != 1) {
    json.refuse("partial_rotary_factor", "1");
  }
  rope_options(json, rope, config.max_context, &mla);
  score_options(json, &mla);
  return mla.build();
}

constexpr MoeKeys kMoeKeys{.experts = "n_routed_experts",
                           .default_experts = 256,
                           .default_chosen = 8,
                           .default_hidden = 2048};

SublayerSpec moe_of(const JsonObject& json) {
  want_text(json, "scoring_func", "sigmoid");
  want_text(json, "topk_method", "noaux_tc");
  SpecBuilder moe = moe_options(json, kMoeKeys);
  const int64_t experts = json.integer_or(kMoeKeys.experts, kMoeKeys.default_experts, 1, kMaxWidth);
  const int64_t chosen = json.integer_or(kMoeKeys.chosen, kMoeKeys.default_chosen, 1, kMaxWidth);
  const int64_t groups = json.integer_or("n_group", 8, 1, kMaxWidth);
  if (experts % groups != 0) json.refuse("n_group", fmt::format("a divisor of {}", experts));
  const int64_t keep = json.integer_or("topk_group", 4, 1, kMaxWidth);
  if (keep > groups) json.refuse("topk_group", fmt::format("at most n_group, {}", groups));
  if (chosen > experts / groups * keep) {
    json.refuse(kMoeKeys.chosen, fmt::format("at most {}, the experts of topk_group groups",
                                             experts / groups * keep));
  }
  moe.set_text("router", "sigmoid").set("select_bias", 1);
  moe.set("norm", json.flag_or("norm_topk_prob", true) ? 1 : 0);
  moe.set_number("scale", json.number_or("routed_scaling_factor", 2.5, 1e-6, 1e6));
  if (groups > 1) moe.set("groups", groups).set("keep", keep);
  const int64_t shared = or_none(json, "n_shared_experts", 1, kMaxWidth);
  if (shared > 0) moe.set("shared", shared);
  return moe.build();
}

ModelConfig deepseek_v3_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 4096, 1, kMaxPositions);
  config.extra_layers = json.integer_or("num_nextn_predict_layers", 1, 0, kMaxLayers);
  const int64_t layers = json.integer("num_hidden_layers", 1, kMaxLayers);
  const int64_t dense = json.integer_or("first_k_dense_replace", 3, 0, kMaxLayers);
  const int64_t every = json.integer_or("moe_layer_freq", 1, 1, kMaxLayers);
  const SublayerSpec mla = mla_options(json, config);
  std::optional<SublayerSpec> moe, swiglu;
  for (int64_t i = 0; i < layers; ++i) {
    const bool is_moe = has_experts(json, kMoeKeys) && i >= dense && i % every == 0;
    if (is_moe && !moe) moe = moe_of(json);
    if (!is_moe && !swiglu) swiglu = swiglu_options(json).build();
    config.sublayers.push_back({{mla}});
    config.sublayers.push_back({{is_moe ? *moe : *swiglu}});
  }
  return config;
}

// Our names of a mixer's parameters are theirs.
void map_mla(const std::string& native, const std::string& file, WeightMap* map) {
  static constexpr std::string_view kNames[] = {"q_proj.weight",
                                                "q_a_proj.weight",
                                                "q_a_proj.bias",
                                                "q_a_layernorm.weight",
                                                "q_b_proj.weight",
                                                "kv_a_proj_with_mqa.weight",
                                                "kv_a_proj_with_mqa.bias",
                                                "kv_a_layernorm.weight",
                                                "kv_b_proj.weight",
                                                "o_proj.weight",
                                                "o_proj.bias"};
  for (const std::string_view name : kNames) {
    (*map)[fmt::format("{}{}", native, name)] = {{.name = fmt::format("{}{}", file, name)}};
  }
}

WeightMap deepseek_v3_weights(const ModelConfig& config) {
  LayerNames names;
  names.moe.router_bias = "mlp.gate.e_score_correction_bias";
  names.moe.shared = "mlp.shared_experts.";
  WeightMap map = layer_weights(config, names);
  for (size_t i = 0; i < config.sublayers.size(); i += 2) {
    map_mla(fmt::format("sublayers.{}.mla.", i), fmt::format("model.layers.{}.self_attn.", i / 2),
            &map);
  }
  return map;
}

// Layers behind the last predict further tokens, in training.
bool predicts_further(std::string_view name, const ModelConfig& config) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return false;
  name.remove_prefix(kPrefix.size());
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const int64_t layers = std::ssize(config.sublayers) / 2;
  return error == std::errc() && end != name.data() + name.size() && *end == '.' &&
         layer >= layers && layer < layers + config.extra_layers;
}

}  // namespace

const Family kDeepseekV3Family{.model_type = "deepseek_v3",
                               .config = deepseek_v3_config,
                               .weights = deepseek_v3_weights,
                               .ignorable = decoder_ignorable,
                               .beyond = predicts_further};

}  // namespace braid
