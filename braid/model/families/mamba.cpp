// Mamba-1 as in transformers' MambaForCausalLM and FalconMambaForCausalLM. Falcon Mamba divides the
// step's input, B and C by their root mean squares.
#include <fmt/format.h>

#include "braid/model/families/family.h"

namespace braid {
namespace {

SpecBuilder mamba1_mixer(const JsonObject& json, int64_t width) {
  SpecBuilder mixer("mamba1");
  mixer.set("state", json.integer_or("state_size", 16, 1, kMaxWidth))
      .set("conv", json.integer_or("conv_kernel", 4, 1, 64));
  // Where both are given, transformers goes by intermediate_size (Falcon Mamba's expand is 16).
  const double expand = json.number_or("expand", 2, 0, 1024);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(width));
  mixer.set("inner", json.integer_or("intermediate_size", inner, 1, kMaxWidth));
  mixer.set("dt_rank", rank_or_auto(json, "time_step_rank", width));
  if (json.flag_or("use_bias", false)) mixer.set("bias", 1);
  if (!json.flag_or("use_conv_bias", true)) mixer.set("conv_bias", 0);
  return mixer;
}

ModelConfig stack_of(const JsonObject& json, ModelConfig config, SpecBuilder mixer) {
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const int64_t layers = json.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  config.sublayers.assign(static_cast<size_t>(layers), ParallelSpec{{mixer.build()}});
  return config;
}

ModelConfig mamba_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/true);
  return stack_of(json, config, mamba1_mixer(json, config.width));
}

ModelConfig falcon_mamba_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/true);
  SpecBuilder mixer = mamba1_mixer(json, config.width);
  mixer.set_text("norms", "plain");
  mixer.set_number("norm_eps", json.number_or("mixer_rms_eps", 1e-6, 0, 1));
  return stack_of(json, config, std::move(mixer));
}

WeightMap mamba_weights(const ModelConfig& config) {
  return backbone_weights(config, "mamba1", map_mamba1);
}

}  // namespace

int64_t rank_or_auto(const JsonObject& json, std::string_view key, int64_t width) {
  if (!json.has(key) || describe(*json.find(key)) == "\"auto\"") return (width + 15) / 16;
  return json.integer(key, 1, kMaxWidth);
}

void map_mamba1(const std::string& native, const std::string& file, WeightMap* map) {
  static constexpr std::string_view kNames[] = {"in_proj.weight",
                                                "in_proj.bias",
                                                "conv1d.weight",
                                                "conv1d.bias",
                                                "x_proj.weight",
                                                "dt_proj.weight",
                                                "dt_proj.bias",
                                                "A_log",
                                                "D",
                                                "out_proj.weight",
                                                "out_proj.bias",
                                                "dt_layernorm.weight",
                                                "b_layernorm.weight",
                                                "c_layernorm.weight"};
  for (const std::string_view name : kNames) {
    (*map)[fmt::format("{}{}", native, name)] = {
        {.name = fmt::format("{}{}", file, name), .squeeze = name == "conv1d.weight"}};
  }
}

const Family kMambaFamily{.model_type = "mamba",
                          .config = mamba_config,
                          .weights = mamba_weights,
                          .ignorable = nothing_ignorable};

const Family kFalconMambaFamily{.model_type = "falcon_mamba",
                                .config = falcon_mamba_config,
                                .weights = mamba_weights,
                                .ignorable = nothing_ignorable};

}  // namespace braid
