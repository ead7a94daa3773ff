// What Llama and Mistral share: a layer is attention and SwiGLU, each behind its own norm.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// Where the rope keys stand: `rope_parameters` holds all of them; before it, `rope_theta` stood
// beside `rope_scaling`, whose kind was first called `type`.
struct RopeKeys {
  JsonObject scaling;
  std::string kind;
  double theta;
  double partial;
};

RopeKeys find_rope(const JsonObject& json, double partial, double theta) {
  const bool newer = json.has("rope_parameters"), older = json.has("rope_scaling");
  const JsonObject scaling = newer   ? json.object("rope_parameters")
                             : older ? json.object("rope_scaling")
                                     : JsonObject(json.value(), json.source());
  RopeKeys keys{.scaling = scaling, .kind = "default", .theta = theta, .partial = 1};
  if (newer || older) {
    const std::string kind = scaling.text_or("type", "default");
    keys.kind = scaling.text_or("rope_type", kind);
    check(!scaling.has("type") || kind == keys.kind, ErrorKind::kFormat,
          "{}: type is {}, want the rope_type {}", scaling.source(), quote(kind), quote(keys.kind));
  }
  const JsonObject& inner = newer ? scaling : json;
  constexpr double kMaxTheta = 1e15;
  keys.theta = inner.number_or("rope_theta", json.number_or("rope_theta", theta, 1, kMaxTheta), 1,
                               kMaxTheta);
  keys.partial = inner.number_or("partial_rotary_factor",
                                 json.number_or("partial_rotary_factor", partial, 0, 1), 0, 1);
  for (const char* key : {"rope_theta", "partial_rotary_factor"}) {
    if (!newer || !json.has(key) || !scaling.has(key)) continue;
    if (json.number(key) == scaling.number(key)) continue;
    json.refuse(key, describe(*scaling.find(key)) + " as in rope_parameters");
  }
  return keys;
}

// Positions the model was trained on before its context was extended.
int64_t original_positions(const JsonObject& json, const JsonObject& scaling, int64_t fallback) {
  constexpr const char* kKey = "original_max_position_embeddings";
  return scaling.integer_or(kKey, json.integer_or(kKey, fallback, 2, kMaxPositions), 2,
                            kMaxPositions);
}

void set_yarn(const RopeKeys& keys, double factor, SpecBuilder* attention) {
  const JsonObject& scaling = keys.scaling;
  attention->set_number("beta_fast", scaling.number_or("beta_fast", 32, 1e-6, 1e6));
  attention->set_number("beta_slow", scaling.number_or("beta_slow", 1, 1e-6, 1e6));
  if (!scaling.flag_or("truncate", true)) attention->set("truncate", 0);
  // DeepSeek's way of giving the attention factor, as a ratio.
  const double mscale = scaling.number_or("mscale", 0, 0, 1e6);
  const double all = scaling.number_or("mscale_all_dim", 0, 0, 1e6);
  if (!scaling.has("attention_factor") && mscale > 0 && all > 0) {
    const double log = factor > 1 ? 0.1 * std::log(factor) : 0;
    attention->set_number("attention_factor", (mscale * log + 1) / (all * log + 1));
  }
}

void set_longrope(const RopeKeys& keys, int64_t rotary_dim, SpecBuilder* attention) {
  for (const auto& [key, option] :
       {std::pair("short_factor", "short"), std::pair("long_factor", "long")}) {
    const std::vector<double> factors = keys.scaling.numbers(key, 1e-6, 1e6);
    if (static_cast<int64_t>(factors.size()) != rotary_dim / 2) {
      keys.scaling.refuse(key, fmt::format("a list of {}, half the rotary size", rotary_dim / 2));
    }
    attention->set_numbers(option, factors);
  }
}

}  // namespace

void rope_options(const JsonObject& json, int64_t head_dim, int64_t max_positions,
                  SpecBuilder* attention, double partial, double theta) {
  const RopeKeys keys = find_rope(json, partial, theta);
  const JsonObject& scaling = keys.scaling;
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * keys.partial);
  check(rotary_dim >= 2 && rotary_dim % 2 == 0, ErrorKind::kFormat,
        "{}: head_dim {} with partial_rotary_factor {} rotates {} values, want a positive even "
        "number",
        json.source(), head_dim, format_number(keys.partial), rotary_dim);
  if (keys.kind != "default") attention->set_text("rope", keys.kind);
  attention->set_number("theta", keys.theta);
  if (keys.partial != 1) attention->set_number("partial", keys.partial);
  if (keys.kind == "default") return;

  const std::string_view kinds[] = {"linear", "dynamic", "yarn", "llama3", "longrope"};
  if (std::ranges::find(kinds, keys.kind) == std::end(kinds)) {
    scaling.refuse(scaling.has("rope_type") ? "rope_type" : "type",
                   fmt::format("one of default, {}", fmt::join(kinds, ", ")));
  }
  const int64_t original = original_positions(json, scaling, max_positions);
  const bool may_derive = keys.kind == "yarn" || keys.kind == "longrope";
  const double factor = may_derive && !scaling.has("factor")
                            ? static_cast<double>(max_positions) / static_cast<double>(original)
                            : scaling.number("factor", 1e-6, 1e6);
  attention->set_number("factor", factor);
  if (keys.kind == "dynamic") attention->set("max", max_positions);
  if (keys.kind == "llama3") {
    attention->set("original",
                   scaling.integer("original_max_position_embeddings", 2, kMaxPositions));
    const double low = scaling.number("low_freq_factor", 1e-6, 1e6);
    const double high = scaling.number("high_freq_factor", 1e-6, 1e6);
    if (low >= high) scaling.refuse("low_freq_factor", "less than high_freq_factor");
    attention->set_number("low", low).set_number("high", high);
  }
  if (may_derive) attention->set("original", original);
  if (keys.kind == "yarn") set_yarn(keys, factor, attention);
  if (keys.kind == "longrope") set_longrope(keys, rotary_dim, attention);
  if (may_derive && scaling.has("attention_factor")) {
    attention->set_number("attention_factor", scaling.number("attention_factor", 1e-6, 1e6));
  }
}

void attention_options(const JsonObject& json, const ModelConfig& config, SpecBuilder* attention,
                       double partial) {
  attention_options(json, config, attention, AttentionDefaults{.partial = partial});
}

void attention_options(const JsonObject& json, const ModelConfig& config, SpecBuilder* attention,
                       const AttentionDefaults& defaults) {
  constexpr const char* kKvKey = "num_key_value_heads";
  const int64_t heads = json.integer("num_attention_heads", 1, kMaxWidth);
  const bool as_heads = defaults.kv_heads == 0 || json.value().contains(kKvKey);
  const int64_t kv = json.integer_or(kKvKey, as_heads ? heads : defaults.kv_heads, 1, kMaxWidth);
  check(heads % kv == 0, ErrorKind::kFormat,
        "{}: num_key_value_heads is {}, want a divisor of num_attention_heads, {}", json.source(),
        kv, heads);
  const bool given = json.has("head_dim") || defaults.head_dim > 0;
  check(given || config.width % heads == 0, ErrorKind::kFormat,
        "{}: num_attention_heads is {}, want a divisor of hidden_size, {}, or a head_dim",
        json.source(), heads, config.width);
  const int64_t fallback = defaults.head_dim > 0 ? defaults.head_dim : config.width / heads;
  const int64_t head_dim = json.integer_or("head_dim", fallback, 1, kMaxWidth);
  attention->set("heads", heads).set("kv", kv).set("dim", head_dim);
  if (!defaults.positions) {
    attention->set_text("rope", "none");
    return;
  }
  rope_options(json, head_dim, config.max_context, attention, defaults.partial, defaults.theta);
}

SpecBuilder swiglu_options(const JsonObject& json) {
  SpecBuilder ffn("swiglu");
  ffn.set("hidden", json.integer("intermediate_size", 1, kMaxWidth));
  if (json.flag_or("mlp_bias", false)) ffn.set("bias", 1);
  return ffn;
}

void decoder_config(const JsonObject& json, SpecBuilder attention, ModelConfig* config) {
  want_silu(json, "hidden_act");
  config->norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
  config->max_context = json.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  const int64_t layers = json.integer("num_hidden_layers", 1, kMaxLayers);
  attention_options(json, *config, &attention);
  const SublayerSpec mixer = attention.build(), swiglu = swiglu_options(json).build();
  for (int64_t i = 0; i < layers; ++i) {
    config->sublayers.push_back({{mixer}});
    config->sublayers.push_back({{swiglu}});
  }
}

WeightMap decoder_weights(const ModelConfig& config) { return layer_weights(config, {}); }

bool decoder_ignorable(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

}  // namespace braid
