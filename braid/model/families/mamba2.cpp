// Mamba-2 as in transformers' Mamba2ForCausalLM. The gated norm spans all channels there, whatever
// the number of groups (the original code normalises group by group).
#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

ModelConfig mamba2_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const int64_t layers = json.integer_or("num_hidden_layers", 64, 1, kMaxLayers);
  const int64_t heads = json.integer_or("num_heads", 128, 1, kMaxWidth);
  const int64_t head = json.integer_or("head_dim", 64, 1, kMaxWidth);
  const int64_t groups = json.integer_or("n_groups", 8, 1, kMaxWidth);
  const double expand = json.number_or("expand", 2, 0, 1024);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(config.width));
  check(inner == heads * head, ErrorKind::kFormat,
        "{}: num_heads * head_dim is {} * {} = {}, want expand * hidden_size = {}", json.source(),
        heads, head, heads * head, inner);
  check(heads % groups == 0, ErrorKind::kFormat,
        "{}: n_groups is {}, want a divisor of num_heads, {}", json.source(), groups, heads);

  SpecBuilder mixer("mamba2");
  mixer.set("state", json.integer_or("state_size", 128, 1, kMaxWidth))
      .set("head", head)
      .set("heads", heads)
      .set("groups", groups)
      .set("conv", json.integer_or("conv_kernel", 4, 1, 64))
      .set("norm_groups", 1);
  if (json.has("time_step_limit")) {
    const auto limits = json.numbers("time_step_limit", 0, SpecOptions::kInfinity);
    if (limits.size() != 2 || limits[0] > limits[1] || std::isinf(limits[0])) {
      json.refuse("time_step_limit", "a list of a lower and an upper limit");
    }
    if (limits[0] > 0) mixer.set_number("dt_min", limits[0]);
    if (!std::isinf(limits[1])) mixer.set_number("dt_max", limits[1]);
  }
  if (json.flag_or("use_bias", false)) mixer.set("bias", 1);
  if (!json.flag_or("use_conv_bias", true)) mixer.set("conv_bias", 0);
  config.sublayers.assign(static_cast<size_t>(layers), ParallelSpec{{mixer.build()}});
  return config;
}

WeightMap mamba2_weights(const ModelConfig& config) {
  static constexpr std::string_view kMixer[] = {
      "in_proj.weight", "in_proj.bias",    "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D",
      "norm.weight",    "out_proj.weight", "out_proj.bias"};
  WeightMap map;
  map["embedding.weight"] = {{.name = "backbone.embeddings.weight"}};
  map["final_norm.weight"] = {{.name = "backbone.norm_f.weight"}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string file = fmt::format("backbone.layers.{}.", i);
    map[native + "norm.weight"] = {{.name = file + "norm.weight"}};
    for (const std::string_view name : kMixer) {
      map[fmt::format("{}mamba2.{}", native, name)] = {
          {.name = fmt::format("{}mixer.{}", file, name), .squeeze = name == "conv1d.weight"}};
    }
  }
  return map;
}

bool nothing_ignorable(std::string_view) { return false; }

}  // namespace

const Family kMamba2Family{.model_type = "mamba2",
                           .config = mamba2_config,
                           .weights = mamba2_weights,
                           .ignorable = nothing_ignorable};

}  // namespace braid
