// Zamba2: Mamba-2 layers, some of which are fed by one of a few shared transformer blocks, as in
// transformers' Zamba2ForCausalLM. Such a layer is two sublayers here: shared_block, mamba2.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr Mamba2Keys kMamba{.heads = "n_mamba_heads",
                            .head = "mamba_headdim",
                            .groups = "mamba_ngroups",
                            .bias = "add_bias_linear",
                            .conv_bias = "use_conv_bias",
                            .default_heads = 8,
                            .default_state = 64};

// Which layers are hybrid: a list of kinds, or of their indices; where both are given they agree.
std::vector<bool> hybrid_layers(const JsonObject& json, int64_t layers) {
  std::vector<bool> hybrid(static_cast<size_t>(layers));
  const std::string_view list = json.has("layer_types") && !json.has("layers_block_type")
                                    ? "layer_types"
                                    : "layers_block_type";
  for (const int64_t i : json.integers_or_one("hybrid_layer_ids", 0, layers - 1)) {
    hybrid[static_cast<size_t>(i)] = true;
  }
  if (json.has("hybrid_layer_ids") && !json.has(list)) return hybrid;
  const auto kinds = layer_kinds(json, list, layers, {"mamba", "hybrid"});
  for (size_t i = 0; i < kinds.size(); ++i) {
    const bool is = kinds[i] == "hybrid";
    check(!json.has("hybrid_layer_ids") || is == hybrid[i], ErrorKind::kFormat,
          "{}: {}[{}] is \"{}\", want {} as in hybrid_layer_ids", json.source(), list, i, kinds[i],
          is ? "mamba" : "hybrid");
    hybrid[i] = is;
  }
  return hybrid;
}

// heads, kv, dim and rotary options; queries, keys and values come from twice the width.
void block_attention(const JsonObject& json, const ModelConfig& config, SpecBuilder* block) {
  const int64_t heads = json.integer_or("num_attention_heads", 32, 1, kMaxWidth);
  const int64_t kv = json.integer_or("num_key_value_heads", heads, 1, kMaxWidth);
  check(heads % kv == 0, ErrorKind::kFormat,
        "{}: num_key_value_heads is {}, want a divisor of num_attention_heads, {}", json.source(),
        kv, heads);
  const int64_t dim = json.integer_or("attention_head_dim", 2 * config.width / heads, 1, kMaxWidth);
  check(heads * dim == 2 * config.width, ErrorKind::kFormat,
        "{}: num_attention_heads * attention_head_dim is {} * {} = {}, want 2 * hidden_size = {}",
        json.source(), heads, dim, heads * dim, 2 * config.width);
  block->set("heads", heads).set("kv", kv).set("dim", dim);
  if (!json.flag_or("use_mem_rope", false)) {
    block->set_text("rope", "none");
    return;
  }
  SpecBuilder plain("rope");
  rope_options(json, dim, config.max_context, &plain);
  const SublayerSpec rope = plain.build();
  SpecOptions options(rope);
  if (options.has("rope") || options.has("partial")) {
    json.refuse(json.has("rope_parameters") ? "rope_parameters" : "rope_scaling",
                "plain rotary positions");
  }
  // The base grows with the context, from 4096 to 16384 positions.
  const auto d = static_cast<double>(dim);
  const double growth = json.flag_or("use_long_context", false) ? std::pow(8.0, d / (d - 2)) : 1.0;
  block->set_number("theta", options.number("theta", 10000) * growth);
}

SpecBuilder block_options(const JsonObject& json, const ModelConfig& config, int64_t share) {
  SpecBuilder block("shared_block");
  block.set("share", share);
  block_attention(json, config, &block);
  block.set("hidden",
            json.integer_or("intermediate_size",
                            json.integer_or("ffn_hidden_size", 4 * config.width, 1, kMaxWidth), 1,
                            kMaxWidth));
  const int64_t rank = json.integer_or("adapter_rank", 128, 1, kMaxWidth);
  if (json.flag_or("use_shared_mlp_adapter", true)) block.set("rank", rank);
  if (json.flag_or("use_shared_attention_adapter", false)) block.set("attn_rank", rank);
  if (json.flag_or("add_bias_linear", false)) block.set("bias", 1);
  return block;
}

ModelConfig zamba2_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/true);
  if (json.text_or("hidden_act", "gelu") != "gelu") json.refuse("hidden_act", "\"gelu\"");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-5, 0, 1);
  config.max_context = json.flag_or("use_long_context", false)
                           ? 16384
                           : json.integer_or("max_position_embeddings", 4096, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 54, 1, kMaxLayers);
  const int64_t blocks = json.integer_or("num_mem_blocks", 1, 1, kMaxLayers);
  SpecBuilder mixer = mamba2_options(json, config.width, kMamba);
  // The reference clamps dt from below at time_step_min; its fused kernels do not.
  const double dt_min = json.number_or("time_step_min", 0.001, 0, 1e6);
  if (!json.has("time_step_limit") && dt_min > 0) mixer.set_number("dt_min", dt_min);
  const SublayerSpec mamba = mixer.build();
  int64_t place = 0;
  for (const bool hybrid : hybrid_layers(json, layers)) {
    if (hybrid) {
      config.sublayers.push_back({{block_options(json, config, place++ % blocks).build()}});
    }
    config.sublayers.push_back({{mamba}});
  }
  return config;
}

// What one place of a shared block calls its tensors.
struct Place {
  std::string native;  // "sublayers.3.shared_block."
  std::string layer;   // "model.layers.2."
  std::string block;   // where the block's tensors are: under the first layer that uses it
  int64_t index = 0;   // among all places: the adapters' number
};

void map_block(const Place& place, SpecOptions& options, WeightMap* map) {
  const std::string self = place.block + "self_attn.", mlp = place.block + "feed_forward.";
  const auto set = [&](const std::string& name, std::vector<WeightPart> parts) {
    (*map)[place.native + name] = std::move(parts);
  };
  set("input_norm.weight", {{.name = place.block + "input_layernorm.weight"}});
  set("ffn_norm.weight", {{.name = place.block + "pre_ff_layernorm.weight"}});
  const int64_t dim = options.integer("dim", 0);
  const int64_t q = options.integer("heads", 0) * dim, kv = options.integer("kv", 0) * dim;
  set("qkv_proj.weight", {{.name = self + "q_proj.weight", .rows = q},
                          {.name = self + "k_proj.weight", .rows = kv},
                          {.name = self + "v_proj.weight", .rows = kv}});
  set("o_proj.weight", {{.name = self + "o_proj.weight"}});
  for (const std::string kind : {"weight", "bias"}) {
    set("gate_up." + kind, {{.name = mlp + "gate_up_proj." + kind}});
    set("down." + kind, {{.name = mlp + "down_proj." + kind}});
  }
  const auto adapter = [&](const std::string& list, int part) {
    return fmt::format("{}_adapter_list.{}.{}.weight", list, place.index, part);
  };
  std::vector<WeightPart> in;
  const int64_t attn_rank = options.integer("attn_rank", 0, 0);
  for (const std::string x : {"q", "k", "v"}) {
    in.push_back({.name = adapter(self + "linear_" + x, 0), .rows = attn_rank});
    set(x + "_adapter.out.weight", {{.name = adapter(self + "linear_" + x, 1)}});
  }
  set("qkv_adapter.in.weight", std::move(in));
  set("ffn_adapter.in.weight", {{.name = adapter(mlp + "gate_up_proj", 0)}});
  set("ffn_adapter.out.weight", {{.name = adapter(mlp + "gate_up_proj", 1)}});
  set("linear.weight", {{.name = place.layer + "linear.weight"}});
}

WeightMap zamba2_weights(const ModelConfig& config) {
  WeightMap map;
  map["embedding.weight"] = {{.name = "model.embed_tokens.weight"}};
  map["final_norm.weight"] = {{.name = "model.final_layernorm.weight"}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  std::map<int64_t, std::string> blocks;  // share -> where its tensors are
  int64_t layer = 0, places = 0;
  bool hybrid = false;
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const SublayerSpec& spec = config.sublayers[i].branches.at(0);
    const std::string file = fmt::format("model.layers.{}.", layer);
    const std::string native = fmt::format("sublayers.{}.", i);
    if (spec.name == "shared_block") {
      SpecOptions options(spec);
      const auto first =
          blocks.try_emplace(options.integer("share", 0, 0), file + "shared_transformer.").first;
      map_block({.native = native + "shared_block.",
                 .layer = file,
                 .block = first->second,
                 .index = places++},
                options, &map);
      hybrid = true;
      continue;
    }
    const std::string decoder = hybrid ? file + "mamba_decoder." : file;
    map[native + "norm.weight"] = {{.name = decoder + "input_layernorm.weight"}};
    map_mamba2(native + "mamba2.", decoder + "mamba.", &map);
    hybrid = false;
    ++layer;
  }
  return map;
}

}  // namespace

const Family kZamba2Family{.model_type = "zamba2",
                           .config = zamba2_config,
                           .weights = zamba2_weights,
                           .ignorable = decoder_ignorable};

}  // namespace braid
