// Qwen3-Next: Gated DeltaNet with gated attention at every fourth layer, each followed by a mixture
// of experts with a shared one, as in transformers' Qwen3NextForCausalLM. Its files hold w of norms
// that multiply by 1 + w, and projections whose parts alternate head by head.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr MoeKeys kMoe{.default_experts = 512, .default_chosen = 10, .default_hidden = 512};

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config) {
  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention.set("gate", 1).set("qk_norm", 1);
  attention_options(json, config, &attention, {.partial = 0.25, .head_dim = 256, .kv_heads = 2});
  return attention.build();
}

SublayerSpec delta_spec(const JsonObject& json) {
  constexpr int64_t kMaxDim = 4096;  // of gated_delta
  const int64_t key_heads = json.integer_or("linear_num_key_heads", 16, 1, kMaxDim);
  const int64_t heads = json.integer_or("linear_num_value_heads", 32, 1, 2 * kMaxDim);
  check(heads % key_heads == 0, ErrorKind::kFormat,
        "{}: linear_num_value_heads is {}, want a multiple of linear_num_key_heads, {}",
        json.source(), heads, key_heads);
  return SpecBuilder("gated_delta")
      .set("key_heads", key_heads)
      .set("heads", heads)
      .set("dim", json.integer_or("linear_key_head_dim", 128, 1, kMaxDim))
      .set("value", json.integer_or("linear_value_head_dim", 128, 1, kMaxDim))
      .set("conv", json.integer_or("linear_conv_kernel_dim", 4, 2, 16))
      .build();
}

SublayerSpec moe_spec(const JsonObject& json) {
  SpecBuilder moe = moe_options(json, kMoe);
  moe.set("norm", json.flag_or("norm_topk_prob", true) ? 1 : 0);
  moe.set("shared_hidden", json.integer_or("shared_expert_intermediate_size", 512, 1, kMaxWidth));
  moe.set("shared_gate", 1);
  return moe.build();
}

ModelConfig qwen3_next_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 32768, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 48, 1, kMaxLayers);
  const int64_t interval = json.integer_or("full_attention_interval", 4, 1, kMaxLayers);
  std::vector<std::string> kinds;
  for (int64_t i = 1; i <= layers; ++i) {
    kinds.emplace_back(i % interval == 0 ? "attention" : "mamba");
  }
  if (json.has("layer_types")) {
    kinds = layer_kinds(json, "layer_types", layers, {"mamba", "attention"});
  }
  const std::vector<SublayerSpec> ffns = sparse_or_dense(
      json, kMoe, layers, [&] { return moe_spec(json); },
      [&] { return swiglu_options(json).build(); });
  const SublayerSpec attention = attention_spec(json, config), delta = delta_spec(json);
  for (size_t i = 0; i < kinds.size(); ++i) {
    config.sublayers.push_back({{kinds[i] == "attention" ? attention : delta}});
    config.sublayers.push_back({{ffns[i]}});
  }
  return config;
}

// Key head by key head: its query, its key, and the values and gates of the r heads that read it;
// so b and a.
void map_delta(const std::string& native, const std::string& file, const SublayerSpec& spec,
               WeightMap* map) {
  SpecOptions options(spec);
  const int64_t key_heads = options.integer("key_heads", 0), heads = options.integer("heads", 0);
  const int64_t dim = options.integer("dim", 0), r = heads / key_heads;
  const int64_t values = r * options.integer("value", 0);
  const auto of = [&](const char* name, int64_t block, int64_t first, int64_t count) {
    return WeightPart{.name = file + name,
                      .rows = key_heads * count,
                      .runs = {.block = block, .first = first, .count = count}};
  };
  const auto qkvz = [&](int64_t first, int64_t count) {
    return of("in_proj_qkvz.weight", 2 * (dim + values), first, count);
  };
  (*map)[native + "in_proj_qkv.weight"] = {qkvz(0, dim), qkvz(dim, dim), qkvz(2 * dim, values)};
  (*map)[native + "in_proj_z.weight"] = {qkvz(2 * dim + values, values)};
  (*map)[native + "in_proj_ba.weight"] = {of("in_proj_ba.weight", 2 * r, 0, r),
                                          of("in_proj_ba.weight", 2 * r, r, r)};
  for (const char* name : {"A_log", "dt_bias", "norm.weight", "out_proj.weight"}) {
    (*map)[native + name] = {{.name = file + name}};
  }
  (*map)[native + "conv1d.weight"] = {{.name = file + "conv1d.weight", .squeeze = true}};
}

WeightMap qwen3_next_weights(const ModelConfig& config) {
  WeightMap map = layer_weights(config, {.moe = {.shared = "mlp.shared_expert.",
                                                 .shared_gate = "mlp.shared_expert_gate.weight"}});
  for (auto& [name, parts] : map) {
    if (name.ends_with("norm.weight")) parts.at(0).add_one = true;
  }
  for (size_t i = 0; i < config.sublayers.size(); i += 2) {
    const SublayerSpec& spec = config.sublayers[i].branches.at(0);
    if (spec.name != "gated_delta") continue;
    map_delta(fmt::format("sublayers.{}.gated_delta.", i),
              fmt::format("model.layers.{}.linear_attn.", i / 2), spec, &map);
  }
  return map;
}

// Layers that predict further tokens ahead.
bool qwen3_next_ignorable(std::string_view name) {
  return name.starts_with("mtp.") || decoder_ignorable(name);
}

}  // namespace

const Family kQwen3NextFamily{.model_type = "qwen3_next",
                              .config = qwen3_next_config,
                              .weights = qwen3_next_weights,
                              .ignorable = qwen3_next_ignorable};

}  // namespace braid
