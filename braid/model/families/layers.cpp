// Layers as transformers' hybrids write them: a mixer (or several beside each other) and a
// feed-forward, each behind its own norm; the keys of Mamba-2 and the lists of layer kinds.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// "auto", as the key says in some configs, counts as absent.
bool is_auto(const JsonObject& json, std::string_view key) {
  const nlohmann::json* value = json.find(key);
  return value != nullptr && value->is_string() && *value == "auto";
}

void time_step_limit(const JsonObject& json, std::string_view key, SpecBuilder* mixer) {
  if (!json.has(key)) return;
  const auto limits = json.numbers(key, 0, SpecOptions::kInfinity);
  if (limits.size() != 2 || limits[0] > limits[1] || std::isinf(limits[0])) {
    json.refuse(key, "a list of a lower and an upper limit");
  }
  if (limits[0] > 0) mixer->set_number("dt_min", limits[0]);
  if (!std::isinf(limits[1])) mixer->set_number("dt_max", limits[1]);
}

}  // namespace

SpecBuilder mamba2_options(const JsonObject& json, int64_t width, const Mamba2Keys& keys) {
  const int64_t heads = json.integer_or(keys.heads, keys.default_heads, 1, kMaxWidth);
  const int64_t groups = json.integer_or(keys.groups, keys.default_groups, 1, kMaxWidth);
  const double expand = keys.expand.empty() ? 0 : json.number_or(keys.expand, 2, 0, 1024);
  auto inner = static_cast<int64_t>(expand * static_cast<double>(width));
  const bool given = !keys.inner.empty() && json.has(keys.inner);
  if (given) inner = json.integer(keys.inner, 1, kMaxWidth);
  const int64_t head =
      is_auto(json, keys.head)
          ? inner / heads
          : json.integer_or(keys.head, keys.default_head > 0 ? keys.default_head : inner / heads, 1,
                            kMaxWidth);
  if (keys.expand.empty() && !given) inner = heads * head;
  check(inner == heads * head, ErrorKind::kFormat, "{}: {} * {} is {} * {} = {}, want {} = {}",
        json.source(), keys.heads, keys.head, heads, head, heads * head,
        given ? std::string(keys.inner) : fmt::format("{} * hidden_size", keys.expand), inner);
  check(heads % groups == 0, ErrorKind::kFormat, "{}: {} is {}, want a divisor of {}, {}",
        json.source(), keys.groups, groups, keys.heads, heads);

  SpecBuilder mixer("mamba2");
  mixer.set("state", json.integer_or(keys.state, keys.default_state, 1, kMaxWidth))
      .set("head", head)
      .set("heads", heads)
      .set("groups", groups)
      .set("conv", json.integer_or(keys.conv, 4, 1, 64));
  if (keys.norm_groups > 0) mixer.set("norm_groups", keys.norm_groups);
  time_step_limit(json, keys.limit, &mixer);
  const bool bias = json.flag_or(keys.bias, false);
  const bool out_bias = keys.out_bias.empty() ? bias : json.flag_or(keys.out_bias, false);
  if (bias) mixer.set("bias", 1);
  if (out_bias != bias) mixer.set("out_bias", out_bias ? 1 : 0);
  if (!json.flag_or(keys.conv_bias, true)) mixer.set("conv_bias", 0);
  return mixer;
}

std::vector<std::string> layer_kinds(const JsonObject& json, std::string_view key, int64_t layers,
                                     std::initializer_list<std::string_view> kinds) {
  const nlohmann::json& list = json.at(key, "a list of layer kinds");
  if (!list.is_array() || static_cast<int64_t>(list.size()) != layers) {
    json.refuse(key, fmt::format("a list of {}, as num_hidden_layers says", layers));
  }
  std::vector<std::string> out;
  for (size_t i = 0; i < list.size(); ++i) {
    std::string kind = list[i].is_string() ? list[i].get<std::string>() : std::string();
    if (kind == "linear_attention") kind = "mamba";
    if (kind == "full_attention") kind = "attention";
    check(std::ranges::find(kinds, kind) != kinds.end(), ErrorKind::kFormat,
          "{}: {}[{}] is {}, want one of {}", json.source(), key, i, describe(list[i]),
          fmt::join(kinds, ", "));
    out.push_back(std::move(kind));
  }
  return out;
}

void map_attention(const std::string& native, const std::string& file, const SublayerSpec& spec,
                   WeightMap* map) {
  SpecOptions options(spec);
  const int64_t dim = options.integer("dim", 0);
  const int64_t q = options.integer("heads", 0) * dim, kv = options.integer("kv", 0) * dim;
  const bool gated = options.flag("gate", false);
  for (const std::string kind : {"weight", "bias"}) {
    const auto part = [&](const char* name, int64_t rows) {
      return WeightPart{.name = fmt::format("{}{}.{}", file, name, kind), .rows = rows};
    };
    std::vector<WeightPart> qkv = {part("q_proj", q), part("k_proj", kv), part("v_proj", kv)};
    if (gated) {  // head by head, its query and then its gate
      qkv.push_back(qkv[0]);
      qkv[0].runs = {.block = 2 * dim, .first = 0, .count = dim};
      qkv[3].runs = {.block = 2 * dim, .first = dim, .count = dim};
    }
    (*map)[native + "qkv_proj." + kind] = std::move(qkv);
    (*map)[native + "o_proj." + kind] = {part("o_proj", 0)};
  }
  for (const std::string norm : {"q_norm.weight", "k_norm.weight"}) {
    (*map)[native + norm] = {{.name = file + norm}};
  }
}

void map_mamba2(const std::string& native, const std::string& file, WeightMap* map) {
  static constexpr std::string_view kNames[] = {
      "in_proj.weight", "in_proj.bias",    "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D",
      "norm.weight",    "out_proj.weight", "out_proj.bias"};
  for (const std::string_view name : kNames) {
    (*map)[fmt::format("{}{}", native, name)] = {
        {.name = fmt::format("{}{}", file, name), .squeeze = name == "conv1d.weight"}};
  }
}

WeightMap backbone_weights(const ModelConfig& config, std::string_view mixer,
                           void (*map)(const std::string&, const std::string&, WeightMap*)) {
  WeightMap weights;
  weights["embedding.weight"] = {{.name = "backbone.embeddings.weight"}};
  weights["final_norm.weight"] = {{.name = "backbone.norm_f.weight"}};
  weights["head.weight"] = {{.name = "lm_head.weight"}};
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string file = fmt::format("backbone.layers.{}.", i);
    weights[native + "norm.weight"] = {{.name = file + "norm.weight"}};
    map(fmt::format("{}{}.", native, mixer), file + "mixer.", &weights);
  }
  return weights;
}

WeightMap layer_weights(const ModelConfig& config, const LayerNames& names) {
  WeightMap map;
  map["embedding.weight"] = {{.name = "model.embed_tokens.weight"}};
  map["final_norm.weight"] = {{.name = std::string(names.final_norm)}};
  map["head.weight"] = {{.name = "lm_head.weight"}};
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const std::string file = fmt::format("model.layers.{}.", i / 2);
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string_view norm = i % 2 == 0 ? names.mixer_norm : names.ffn_norm;
    map[native + "norm.weight"] = {{.name = fmt::format("{}{}.weight", file, norm)}};
    for (const SublayerSpec& branch : config.sublayers[i].branches) {
      const std::string path = native + branch.name + ".";
      if (branch.name == "mamba2") {
        map_mamba2(path, file + "mamba.", &map);
      } else if (branch.name == "mamba1") {
        map_mamba1(path, file + "mamba.", &map);
      } else if (branch.name == "moe") {
        map_moe(path, file, branch, names.moe, &map);
      } else if (branch.name == "swiglu") {
        const int64_t hidden = SpecOptions(branch).integer("hidden", 0);
        map_ffn(path, fmt::format("{}{}.", file, names.ffn), names.ffn_parts, {.hidden = hidden},
                &map);
      } else if (branch.name == "attn" || branch.name == "swa") {
        map_attention(path, file + "self_attn.", branch, &map);
      }
    }
  }
  return map;
}

bool nothing_ignorable(std::string_view) { return false; }

}  // namespace braid
