// Mamba-1 and Mamba-2 as state-spaces/mamba writes them: a config.json without model_type, sizes in
// d_model and n_layer, the mixer's options in ssm_cfg.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// What training from scratch draws, and what chooses among kernels: of no meaning to a checkpoint.
constexpr std::string_view kWithoutMeaning[] = {
    "dt_min",        "dt_max",           "dt_init",    "dt_scale",      "dt_init_floor",
    "A_init_range",  "conv_init",        "chunk_size", "use_fast_path", "device",
    "dtype",         "layer_idx",        "layer",      "d_model",       "use_mem_eff_path",
    "process_group", "sequence_parallel"};

void refuse_unknown(const JsonObject& ssm, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : ssm.value().items()) {
    if (std::ranges::find(known, key) != known.end()) continue;
    if (std::ranges::find(kWithoutMeaning, key) != std::end(kWithoutMeaning)) continue;
    ssm.refuse(key, "an option of this mixer");
  }
}

void set_shared(const JsonObject& ssm, int64_t state, SpecBuilder* mixer) {
  mixer->set("state", ssm.integer_or("d_state", state, 1, kMaxWidth))
      .set("conv", ssm.integer_or("d_conv", 4, 1, 64));
  if (ssm.flag_or("bias", false)) mixer->set("bias", 1);
  if (!ssm.flag_or("conv_bias", true)) mixer->set("conv_bias", 0);
}

int64_t inner_width(const JsonObject& ssm, int64_t width) {
  return static_cast<int64_t>(ssm.number_or("expand", 2, 0, 1024) * static_cast<double>(width));
}

SublayerSpec mamba1_spec(const JsonObject& ssm, int64_t width) {
  refuse_unknown(ssm, {"d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias"});
  SpecBuilder mixer("mamba1");
  set_shared(ssm, 16, &mixer);
  mixer.set("inner", inner_width(ssm, width)).set("dt_rank", rank_or_auto(ssm, "dt_rank", width));
  return mixer.build();
}

SublayerSpec mamba2_spec(const JsonObject& ssm, int64_t width) {
  refuse_unknown(ssm, {"d_state", "d_conv", "expand", "headdim", "ngroups", "bias", "conv_bias",
                       "norm_before_gate", "dt_limit", "rmsnorm", "D_has_hdim", "d_ssm"});
  const int64_t inner = inner_width(ssm, width);
  const int64_t head = ssm.integer_or("headdim", 64, 1, kMaxWidth);
  if (inner % head != 0)
    ssm.refuse("headdim", fmt::format("a divisor of the inner width, {}", inner));
  if (!ssm.flag_or("rmsnorm", true)) ssm.refuse("rmsnorm", "true");
  if (ssm.flag_or("D_has_hdim", false)) ssm.refuse("D_has_hdim", "false");
  if (ssm.integer_or("d_ssm", inner, 1, kMaxWidth) != inner) {
    ssm.refuse("d_ssm", fmt::format("the inner width, {}", inner));
  }
  SpecBuilder mixer("mamba2");
  set_shared(ssm, 128, &mixer);
  mixer.set("head", head).set("heads", inner / head);
  mixer.set("groups", ssm.integer_or("ngroups", 1, 1, kMaxWidth));
  if (ssm.flag_or("norm_before_gate", false)) mixer.set("norm_before_gate", 1);
  if (ssm.has("dt_limit")) {
    const auto limits = ssm.numbers("dt_limit", 0, SpecOptions::kInfinity);
    if (limits.size() != 2 || limits[0] > limits[1] || std::isinf(limits[0])) {
      ssm.refuse("dt_limit", "a list of a lower and an upper limit");
    }
    if (limits[0] > 0) mixer.set_number("dt_min", limits[0]);
    if (!std::isinf(limits[1])) mixer.set_number("dt_max", limits[1]);
  }
  return mixer.build();
}

// Attention layers and the feed-forward of hybrid configs.
void refuse_hybrids(const JsonObject& json) {
  if (const auto* layers = json.find("attn_layer_idx"); layers != nullptr && !layers->empty()) {
    json.refuse("attn_layer_idx", "an empty list: no layers of attention");
  }
  if (json.integer_or("d_intermediate", 0, 0, kMaxWidth) > 0) {
    json.refuse("d_intermediate", "0: no feed-forward");
  }
}

ModelConfig state_spaces_config(const JsonObject& json) {
  ModelConfig config;
  config.model_type = kStateSpacesFamily.model_type;
  config.width = json.integer("d_model", 1, kMaxWidth);
  const int64_t layers = json.integer("n_layer", 1, kMaxLayers);
  const int64_t multiple = json.integer_or("pad_vocab_size_multiple", 8, 1, kMaxVocab);
  const int64_t vocab = json.integer("vocab_size", 1, kMaxVocab);
  config.vocab = (vocab + multiple - 1) / multiple * multiple;
  config.tied = json.flag_or("tie_embeddings", true);
  config.norm = json.flag_or("rms_norm", true) ? NormKind::kRms : NormKind::kLayer;
  refuse_hybrids(json);

  const nlohmann::json none = nlohmann::json::object();
  const JsonObject ssm =
      json.has("ssm_cfg") ? json.object("ssm_cfg") : JsonObject(none, json.source());
  const std::string layer = ssm.text_or("layer", "Mamba1");
  if (layer != "Mamba1" && layer != "Mamba2") ssm.refuse("layer", "\"Mamba1\" or \"Mamba2\"");
  const SublayerSpec mixer =
      layer == "Mamba1" ? mamba1_spec(ssm, config.width) : mamba2_spec(ssm, config.width);
  config.sublayers.assign(static_cast<size_t>(layers), ParallelSpec{{mixer}});
  return config;
}

WeightMap state_spaces_weights(const ModelConfig& config) {
  WeightMap map;
  map["embedding.weight"] = {{.name = "backbone.embedding.weight"}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  for (const std::string kind : {"weight", "bias"}) {
    map["final_norm." + kind] = {{.name = "backbone.norm_f." + kind}};
    for (size_t i = 0; i < config.sublayers.size(); ++i) {
      map[fmt::format("sublayers.{}.norm.{}", i, kind)] = {
          {.name = fmt::format("backbone.layers.{}.norm.{}", i, kind)}};
    }
  }
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string file = fmt::format("backbone.layers.{}.mixer.", i);
    if (config.sublayers[i].branches[0].name == "mamba1") {
      map_mamba1(native + "mamba1.", file, &map);
    } else {
      map_mamba2(native + "mamba2.", file, &map);
    }
  }
  return map;
}

}  // namespace

const Family kStateSpacesFamily{.model_type = "mamba_ssm",
                                .config = state_spaces_config,
                                .weights = state_spaces_weights,
                                .ignorable = nothing_ignorable};

}  // namespace braid
