// Mixtures of experts as published configs and checkpoints write them.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

constexpr int64_t kMaxExperts = int64_t{1} << 17;  // of all layers; twice any published model

struct ExpertCount {
  std::string_view key;
  int64_t value = -1;
};

// transformers calls it by any of these, whatever the family.
ExpertCount expert_count(const JsonObject& json, const MoeKeys& keys) {
  constexpr std::string_view kKeys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
  ExpertCount found;
  for (const std::string_view key : kKeys) {
    if (!json.has(key)) continue;
    const int64_t value = json.integer(key, 0, kMaxExperts);
    if (found.value >= 0 && found.value != value) {
      json.refuse(key, fmt::format("{} as in {}", found.value, found.key));
    }
    found = {key, value};
  }
  return found.value < 0 ? ExpertCount{keys.experts, keys.default_experts} : found;
}

}  // namespace

bool has_experts(const JsonObject& json, const MoeKeys& keys) {
  return expert_count(json, keys).value > 0;
}

SpecBuilder moe_options(const JsonObject& json, const MoeKeys& keys) {
  const auto [key, experts] = expert_count(json, keys);
  if (experts < 1) json.integer(key, 1, kMaxExperts);  // which refuses it
  const int64_t layers =
      keys.layers > 0 ? keys.layers : json.integer_or("num_hidden_layers", 1, 1, kMaxLayers);
  if (experts > kMaxExperts / layers) {
    json.refuse(key, fmt::format("at most {} in {} layers", kMaxExperts / layers, layers));
  }
  const int64_t chosen = json.integer_or(keys.chosen, keys.default_chosen, 1, kMaxExperts);
  if (chosen > experts) json.refuse(keys.chosen, fmt::format("at most {}, {}", key, experts));
  SpecBuilder moe("moe");
  moe.set_text({}, fmt::format("{}/{}", experts, chosen));
  moe.set("hidden", keys.default_hidden > 0
                        ? json.integer_or(keys.hidden, keys.default_hidden, 1, kMaxWidth)
                        : json.integer(keys.hidden, 1, kMaxWidth));
  return moe;
}

std::vector<SublayerSpec> sparse_or_dense(const JsonObject& json, const MoeKeys& keys,
                                          int64_t layers,
                                          const std::function<SublayerSpec()>& sparse,
                                          const std::function<SublayerSpec()>& dense) {
  const int64_t step = json.integer_or("decoder_sparse_step", 1, 1, kMaxLayers);
  std::vector<bool> is_sparse;
  for (int64_t i = 1; i <= layers; ++i) {
    is_sparse.push_back(i % step == 0 && has_experts(json, keys));
  }
  for (const int64_t i : json.integers_or_one("mlp_only_layers", 0, layers - 1)) {
    is_sparse[static_cast<size_t>(i)] = false;
  }
  const auto any = [&](bool kind) { return std::ranges::find(is_sparse, kind) != is_sparse.end(); };
  const SublayerSpec moe = any(true) ? sparse() : SublayerSpec{};
  const SublayerSpec plain = any(false) ? dense() : SublayerSpec{};
  std::vector<SublayerSpec> ffns;
  for (const bool kind : is_sparse) ffns.push_back(kind ? moe : plain);
  return ffns;
}

void map_ffn(const std::string& native, const std::string& file, const FfnNames& names,
             const FfnShape& shape, WeightMap* map) {
  for (const char* kind : {"weight", "bias"}) {
    const auto part = [&](std::string_view name, int64_t rows) {
      return WeightPart{.name = fmt::format("{}{}.{}", file, name, kind), .rows = rows};
    };
    std::vector<WeightPart>& in =
        (*map)[fmt::format("{}{}.{}", native, shape.gated ? "gate_up" : "up", kind)];
    in = {part(names.up, shape.hidden)};
    if (shape.gated && !names.gate.empty()) in.insert(in.begin(), part(names.gate, shape.hidden));
    (*map)[fmt::format("{}down.{}", native, kind)] = {part(names.down, 0)};
    if (!shape.biased) return;
  }
}

void map_moe(const std::string& native, const std::string& file, const SublayerSpec& spec,
             const MoeNames& names, WeightMap* map) {
  SpecOptions options(spec);
  const int64_t experts = options.positional_choice("experts").of;
  const FfnShape shape{.hidden = options.integer("hidden", 0),
                       .gated = options.text("act", "swiglu") == "swiglu",
                       .biased = false};
  const auto one = [&](std::string_view parameter, std::string_view tensor) {
    if (tensor.empty()) return;
    (*map)[fmt::format("{}{}", native, parameter)] = {{.name = fmt::format("{}{}", file, tensor)}};
  };
  one("router.weight", names.router);
  one("router.bias", names.router_bias);
  one("shared_gate.weight", names.shared_gate);
  if (!names.shared.empty()) {
    FfnShape shared = shape;
    shared.hidden = options.integer("shared_hidden", options.integer("shared", 0) * shape.hidden);
    map_ffn(native + "shared.", fmt::format("{}{}", file, names.shared), names.ffn, shared, map);
  }
  for (int64_t e = 0; e < experts; ++e) {
    const std::string path = fmt::format("{}experts.{}.", native, e);
    if (names.fused_in.empty()) {
      map_ffn(path, fmt::format("{}{}{}.", file, names.experts, e), names.ffn, shape, map);
      continue;
    }
    const auto row = [&](std::string_view name) {
      return WeightPart{
          .fused = fmt::format("{}{}", file, name), .fused_row = e, .fused_rows = experts};
    };
    (*map)[path + (shape.gated ? "gate_up.weight" : "up.weight")] = {row(names.fused_in)};
    (*map)[path + "down.weight"] = {row(names.fused_out)};
  }
}

}  // namespace braid
