// Falcon-H1: attention and Mamba-2 side by side in every layer, then a SwiGLU, with multipliers
// throughout, as in transformers' FalconH1ForCausalLM.
#include <fmt/format.h>

#include <cmath>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr Mamba2Keys kMamba{
    .inner = "mamba_d_ssm", .out_bias = "projectors_bias", .default_state = 256};

// The list of multipliers at `key`; ones where it is absent.
std::vector<double> multipliers(const JsonObject& json, std::string_view key, size_t count) {
  if (!json.has(key)) return std::vector<double>(count, 1.0);
  std::vector<double> values = json.numbers(key, -1e6, 1e6);
  if (values.size() != count) json.refuse(key, fmt::format("a list of {}", count));
  return values;
}

void set_scale(const JsonObject& json, std::string_view key, std::string option,
               SpecBuilder* builder) {
  const double value = json.number_or(key, 1, -1e6, 1e6);
  if (value != 1) builder->set_number(std::move(option), value);
}

SublayerSpec attention_spec(const JsonObject& json, const ModelConfig& config) {
  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  attention_options(json, config, &attention);
  // Keys are multiplied before they are rotated; rotation is linear, so the scores are instead.
  if (const double m = json.number_or("key_multiplier", 1, 1e-6, 1e6); m != 1) {
    const int64_t heads = json.integer("num_attention_heads", 1, kMaxWidth);
    const auto dim =
        static_cast<double>(json.integer_or("head_dim", config.width / heads, 1, kMaxWidth));
    attention.set_number("scale", m / std::sqrt(dim));
  }
  set_scale(json, "attention_in_multiplier", "in_scale", &attention);
  set_scale(json, "attention_out_multiplier", "out_scale", &attention);
  return attention.build();
}

SublayerSpec mamba_spec(const JsonObject& json, const ModelConfig& config) {
  SpecBuilder mamba = mamba2_options(json, config.width, kMamba);
  if (!json.flag_or("mamba_rms_norm", false)) {
    mamba.set("norm", 0);
  } else if (json.flag_or("mamba_norm_before_gate", true)) {
    mamba.set("norm_before_gate", 1);
  }
  if (json.has("ssm_multipliers")) {
    mamba.set_numbers("scales", multipliers(json, "ssm_multipliers", 5));
  }
  set_scale(json, "ssm_in_multiplier", "in_scale", &mamba);
  set_scale(json, "ssm_out_multiplier", "out_scale", &mamba);
  return mamba.build();
}

ModelConfig falcon_h1_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-5, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 8192, 1, kMaxPositions);
  config.embedding_scale = json.number_or("embedding_multiplier", 1, -1e6, 1e6);
  config.logit_scale = json.number_or("lm_head_multiplier", 1, -1e6, 1e6);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);

  const ParallelSpec mixers{{attention_spec(json, config), mamba_spec(json, config)}};
  const std::vector<double> mlp = multipliers(json, "mlp_multipliers", 2);
  SpecBuilder swiglu = swiglu_options(json);
  if (mlp[0] != 1) swiglu.set_number("gate_scale", mlp[0]);
  if (mlp[1] != 1) swiglu.set_number("out_scale", mlp[1]);
  const ParallelSpec ffn{{swiglu.build()}};
  for (int64_t i = 0; i < layers; ++i) {
    config.sublayers.push_back(mixers);
    config.sublayers.push_back(ffn);
  }
  return config;
}

WeightMap falcon_h1_weights(const ModelConfig& config) {
  return layer_weights(config, {.ffn_norm = "pre_ff_layernorm",
                                .ffn = "feed_forward",
                                .final_norm = "model.final_layernorm.weight"});
}

}  // namespace

const Family kFalconH1Family{.model_type = "falcon_h1",
                             .config = falcon_h1_config,
                             .weights = falcon_h1_weights,
                             .ignorable = decoder_ignorable};

}  // namespace braid
