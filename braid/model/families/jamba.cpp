// Jamba: Mamba-1 with weighted norms, attention without positions every few layers, and a mixture
// of experts for every few feed-forwards, as in transformers' JambaForCausalLM.
#include <fmt/format.h>

#include "braid/model/families/family.h"

namespace braid {
namespace {

// Layers `offset`, `offset` + `period`, ...
struct Every {
  int64_t period, offset;
  bool operator()(int64_t layer) const { return layer % period == offset; }
};

Every every(const JsonObject& json, const std::string& name, Every fallback) {
  const std::string key = name + "_layer_offset";
  const Every out{json.integer_or(name + "_layer_period", fallback.period, 1, kMaxLayers),
                  json.integer_or(key, fallback.offset, 0, kMaxLayers)};
  if (out.offset >= out.period) {
    json.refuse(key, fmt::format("less than {}_layer_period, {}", name, out.period));
  }
  return out;
}

SublayerSpec mamba_spec(const JsonObject& json, int64_t width) {
  const double expand = json.number_or("mamba_expand", 2, 0, 1024);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(width));
  if (inner < 1) json.refuse("mamba_expand", "at least one channel");
  SpecBuilder mamba("mamba1");
  mamba.set("state", json.integer_or("mamba_d_state", 16, 1, kMaxWidth))
      .set("conv", json.integer_or("mamba_d_conv", 4, 1, 64))
      .set("inner", inner)
      .set("dt_rank", rank_or_auto(json, "mamba_dt_rank", width))
      .set_text("norms", "weighted");
  if (json.flag_or("mamba_proj_bias", false)) mamba.set("bias", 1);
  if (!json.flag_or("mamba_conv_bias", true)) mamba.set("conv_bias", 0);
  return mamba.build();
}

ModelConfig jamba_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 262144, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  const Every attends = every(json, "attn", {8, 4}), routes = every(json, "expert", {2, 1});

  SpecBuilder attention("attn");
  attention_options(json, config, &attention, {.kv_heads = 8, .positions = false});
  const SublayerSpec attn = attention.build(), mamba = mamba_spec(json, config.width);
  const SublayerSpec dense =
      SpecBuilder("swiglu").set("hidden", json.integer("intermediate_size", 1, kMaxWidth)).build();
  const SublayerSpec moe =
      moe_options(json, {.hidden = "intermediate_size", .default_experts = 16, .default_chosen = 2})
          .set("norm", 0)
          .build();
  const bool one_expert = moe.args.at(0).value == "1/1";  // is written as a plain feed-forward
  for (int64_t i = 0; i < layers; ++i) {
    config.sublayers.push_back({{attends(i) ? attn : mamba}});
    config.sublayers.push_back({{routes(i) && !one_expert ? moe : dense}});
  }
  return config;
}

WeightMap jamba_weights(const ModelConfig& config) {
  return layer_weights(
      config, {.ffn_norm = "pre_ff_layernorm",
               .ffn = "feed_forward",
               .moe = {.router = "feed_forward.router.weight", .experts = "feed_forward.experts."},
               .final_norm = "model.final_layernorm.weight"});
}

}  // namespace

const Family kJambaFamily{.model_type = "jamba",
                          .config = jamba_config,
                          .weights = jamba_weights,
                          .ignorable = nothing_ignorable};

}  // namespace braid
