// Test-time training (TTT-Linear, TTT-MLP) as in test-time-training/ttt-lm-pytorch's
// TTTForCausalLM. A layer is [short_conv,] ttt_linear or ttt_mlp, swiglu, each behind its own norm.
#include <fmt/format.h>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

SublayerSpec ttt_mixer(const JsonObject& json, const ModelConfig& config) {
  const std::string kind = json.text_or("ttt_layer_type", "linear");
  if (kind != "linear" && kind != "mlp") {
    json.refuse("ttt_layer_type", "\"linear\" or \"mlp\"");
  }
  const int64_t heads = json.integer_or("num_attention_heads", 32, 1, kMaxWidth);
  check(config.width % (2 * heads) == 0, ErrorKind::kFormat,
        "{}: num_attention_heads is {}, want a divisor of half of hidden_size, {}", json.source(),
        heads, config.width);
  const bool share = json.flag_or("share_qk", false);
  SpecBuilder mixer("ttt_" + kind);
  mixer.set("heads", heads)
      .set("mini_batch", json.integer_or("mini_batch_size", 16, 1, 4096))
      .set("share_qk", share ? 1 : 0)
      .set("gate", json.flag_or("use_gate", false) ? 1 : 0)
      .set_number("lr", json.number_or("ttt_base_lr", 1.0, 0, 1e6))
      .set_number("theta", json.number_or("rope_theta", 10000.0, 1, 1e15));
  if (share) mixer.set("conv", json.integer_or("conv_kernel", 4, 2, 16));
  return mixer.build();
}

ModelConfig ttt_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/true);
  want_silu(json, "hidden_act");
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config.max_context = json.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  const int64_t layers = json.integer_or("num_hidden_layers", 24, 1, kMaxLayers);
  const SublayerSpec mixer = ttt_mixer(json, config), ffn = swiglu_options(json).build();
  SpecBuilder conv("short_conv");
  conv.set("conv", json.integer_or("conv_kernel", 4, 2, 16));
  const SublayerSpec before = conv.build();
  for (int64_t i = 0; i < layers; ++i) {
    if (json.flag_or("pre_conv", false)) config.sublayers.push_back({{before}});
    config.sublayers.push_back({{mixer}});
    config.sublayers.push_back({{ffn}});
  }
  return config;
}

void map_ttt(const std::string& native, const std::string& file, WeightMap* map) {
  for (const std::string name :
       {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "g_proj.weight",
        "learnable_token_idx", "ttt_norm_weight", "ttt_norm_bias", "post_norm.weight",
        "post_norm.bias", "conv_q.bias", "conv_k.bias"}) {
    (*map)[native + name] = {{.name = file + name}};
  }
  for (const std::string name : {"conv_q.weight", "conv_k.weight"}) {
    (*map)[native + name] = {{.name = file + name, .squeeze = true}};
  }
  // (H, 1, n) in the file, (H, n) here; a head of one channel or one head changes nothing.
  for (const std::string name : {"W1", "W2", "b1", "b2"}) {
    (*map)[native + name] = {{.name = file + name, .flat = true}};
  }
  for (const std::string kind : {"weight", "bias"}) {
    (*map)[native + "learnable_ttt_lr." + kind] = {
        {.name = file + "learnable_ttt_lr_" + kind, .flat = true}};
  }
}

WeightMap ttt_weights(const ModelConfig& config) {
  WeightMap map;
  map["embedding.weight"] = {{.name = "model.embed_tokens.weight"}};
  map["final_norm.weight"] = {{.name = "model.norm.weight"}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  int64_t layer = 0;
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const SublayerSpec& spec = config.sublayers[i].branches.at(0);
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string path = native + spec.name + ".";
    const std::string file = fmt::format("model.layers.{}.", layer);
    if (spec.name == "short_conv") {
      map[native + "norm.weight"] = {{.name = file + "conv.norm.weight"}};
      map[path + "conv.weight"] = {{.name = file + "conv.conv.weight", .squeeze = true}};
      map[path + "conv.bias"] = {{.name = file + "conv.conv.bias"}};
    } else if (spec.name == "swiglu") {
      map[native + "norm.weight"] = {{.name = file + "ffn_norm.weight"}};
      const int64_t hidden = SpecOptions(spec).integer("hidden", 0);
      map[path + "gate_up.weight"] = {{.name = file + "mlp.gate_proj.weight", .rows = hidden},
                                      {.name = file + "mlp.up_proj.weight", .rows = hidden}};
      map[path + "down.weight"] = {{.name = file + "mlp.down_proj.weight"}};
      ++layer;
    } else {
      map[native + "norm.weight"] = {{.name = file + "seq_norm.weight"}};
      map_ttt(path, file + "seq_modeling_block.", &map);
    }
  }
  return map;
}

}  // namespace

const Family kTttFamily{.model_type = "ttt",
                        .config = ttt_config,
                        .weights = ttt_weights,
                        .ignorable = decoder_ignorable};

}  // namespace braid
