// RWKV-7 in two dialects: config.json and tensors of flash-linear-attention's RWKV7ForCausalLM, and
// the tensors of RWKV-LM, which carry no config.json: their shapes say it all.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"

namespace braid {
namespace {

// One layer: its parameters by native name, in both dialects.
struct Name {
  std::string_view native, fla, rwkv_lm;
};

constexpr Name kVectors[] = {{"rwkv7.x_r", "attn.x_r", "att.x_r"},
                             {"rwkv7.x_w", "attn.x_w", "att.x_w"},
                             {"rwkv7.x_k", "attn.x_k", "att.x_k"},
                             {"rwkv7.x_v", "attn.x_v", "att.x_v"},
                             {"rwkv7.x_a", "attn.x_a", "att.x_a"},
                             {"rwkv7.x_g", "attn.x_g", "att.x_g"},
                             {"rwkv7.w0", "attn.w_lora.lora.2.bias", "att.w0"},
                             {"rwkv7.a0", "attn.a_lora.lora.2.bias", "att.a0"},
                             {"rwkv7.v0", "attn.v_lora.lora.2.bias", "att.v0"},
                             {"rwkv7.k_k", "attn.k_k", "att.k_k"},
                             {"rwkv7.k_a", "attn.k_a", "att.k_a"},
                             {"rwkv7.ln_x.weight", "attn.g_norm.weight", "att.ln_x.weight"},
                             {"rwkv7.ln_x.bias", "attn.g_norm.bias", "att.ln_x.bias"},
                             {"rwkv7_cmix.x_k", "ffn.x_k", "ffn.x_k"}};

// RWKV-LM keeps these (in, out).
constexpr Name kLowRank[] = {{"rwkv7.w1.weight", "attn.w_lora.lora.0.weight", "att.w1"},
                             {"rwkv7.w2.weight", "attn.w_lora.lora.2.weight", "att.w2"},
                             {"rwkv7.a1.weight", "attn.a_lora.lora.0.weight", "att.a1"},
                             {"rwkv7.a2.weight", "attn.a_lora.lora.2.weight", "att.a2"},
                             {"rwkv7.v1.weight", "attn.v_lora.lora.0.weight", "att.v1"},
                             {"rwkv7.v2.weight", "attn.v_lora.lora.2.weight", "att.v2"},
                             {"rwkv7.g1.weight", "attn.g_lora.lora.0.weight", "att.g1"},
                             {"rwkv7.g2.weight", "attn.g_lora.lora.2.weight", "att.g2"}};

constexpr Name kMatrices[] = {
    {"rwkv7.r_k", "attn.r_k", "att.r_k"},
    {"rwkv7.receptance.weight", "attn.r_proj.weight", "att.receptance.weight"},
    {"rwkv7.key.weight", "attn.k_proj.weight", "att.key.weight"},
    {"rwkv7.value.weight", "attn.v_proj.weight", "att.value.weight"},
    {"rwkv7.output.weight", "attn.o_proj.weight", "att.output.weight"},
    {"rwkv7_cmix.key.weight", "ffn.key.weight", "ffn.key.weight"},
    {"rwkv7_cmix.value.weight", "ffn.value.weight", "ffn.value.weight"}};

// What the dialects call the rest.
struct Frame {
  std::string_view layers, embedding, head, embedding_norm, final_norm, mixer_norm, ffn_norm;
};
constexpr Frame kFla{"model.layers.",  "model.embeddings.weight",
                     "lm_head.weight", "model.layers.0.pre_norm.",
                     "model.norm.",    "attn_norm.",
                     "ffn_norm."};
constexpr Frame kRwkvLm{"blocks.", "emb.weight", "head.weight", "blocks.0.ln0.",
                        "ln_out.", "ln1.",       "ln2."};

WeightMap weights(const ModelConfig& config, const Frame& frame, bool rwkv_lm) {
  WeightMap map;
  map["embedding.weight"] = {{.name = std::string(frame.embedding)}};
  map["head.weight"] = {{.name = std::string(frame.head)}};
  const auto norm = [&](const std::string& native, const std::string& file) {
    for (const std::string kind : {"weight", "bias"}) {
      map[native + kind] = {{.name = file + kind}};
    }
  };
  norm("embedding_norm.", std::string(frame.embedding_norm));
  norm("final_norm.", std::string(frame.final_norm));
  for (size_t i = 0; i < config.sublayers.size(); ++i) {
    const std::string native = fmt::format("sublayers.{}.", i);
    const std::string file = fmt::format("{}{}.", frame.layers, i / 2);
    norm(native + "norm.", file + std::string(i % 2 == 0 ? frame.mixer_norm : frame.ffn_norm));
    const auto add = [&](std::span<const Name> names, bool flat, bool transposed) {
      for (const Name& name : names) {
        if (name.native.starts_with("rwkv7_cmix.") != (i % 2 == 1)) continue;
        WeightPart part{.name = file + std::string(rwkv_lm ? name.rwkv_lm : name.fla),
                        .flat = flat,
                        .transposed = transposed};
        // Older files of flash-linear-attention hold the six in one, in the order of the table.
        if (!rwkv_lm && name.native.starts_with("rwkv7.x_")) {
          part.fused = file + "attn.x_x";
          part.fused_row = &name - names.data();
        }
        map[native + std::string(name.native)] = {std::move(part)};
      }
    };
    add(kVectors, true, false);
    add(kLowRank, false, rwkv_lm);
    add(kMatrices, false, false);
  }
  return map;
}

WeightMap fla_weights(const ModelConfig& config) { return weights(config, kFla, false); }
WeightMap rwkv_lm_weights(const ModelConfig& config) { return weights(config, kRwkvLm, true); }

// The first layer mixes no values: what stands there for it was never used.
bool rwkv_lm_ignorable(std::string_view name) {
  return name == "blocks.0.att.v0" || name == "blocks.0.att.v1" || name == "blocks.0.att.v2";
}

int64_t fla_head_dim(const JsonObject& json, int64_t width) {
  const int64_t heads = json.integer_or("num_heads", 0, 1, kMaxWidth);
  const int64_t head = json.integer_or("head_dim", heads > 0 ? width / heads : 64, 1, kMaxWidth);
  check(width % head == 0, ErrorKind::kFormat,
        "{}: head_dim is {}, want a divisor of hidden_size, {}", json.source(), head, width);
  check(heads == 0 || heads * head == width, ErrorKind::kFormat,
        "{}: num_heads is {}, want hidden_size / head_dim = {}", json.source(), heads,
        width / head);
  return head;
}

int64_t fla_hidden(const JsonObject& json, int64_t width) {
  const double ratio = json.number_or("hidden_ratio", 4, 0, 1024);
  const auto wide = static_cast<int64_t>(ratio * static_cast<double>(width));
  return json.integer_or("intermediate_size", (wide + 31) / 32 * 32, 1, kMaxWidth);
}

ModelConfig fla_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  config.norm = NormKind::kLayer;
  config.norm_eps = json.number_or("norm_eps", 1e-5, 0, 1);
  config.embedding_norm = json.flag_or("norm_first", true);
  config.max_context = json.integer_or("max_position_embeddings", 0, 0, kMaxPositions);
  if (!json.flag_or("norm_bias", true)) json.refuse("norm_bias", "true");
  if (json.has("attn")) json.refuse("attn", "null: no layers of attention");
  const std::string act = json.text_or("hidden_act", "sqrelu");
  if (act != "sqrelu" && act != "relu2") json.refuse("hidden_act", "\"sqrelu\" or \"relu2\"");
  const int64_t layers = json.integer_or("num_hidden_layers", 24, 1, kMaxLayers);
  for (const int64_t width : json.integers_or_one("value_dim", 1, kMaxWidth)) {
    if (width != config.width) {
      json.refuse("value_dim", fmt::format("hidden_size, {}, in every layer", config.width));
    }
  }
  SpecBuilder mixer("rwkv7"), ffn("rwkv7_cmix");
  mixer.set("head", fla_head_dim(json, config.width));
  constexpr std::pair<const char*, const char*> kRanks[] = {{"w", "decay_low_rank_dim"},
                                                            {"a", "a_low_rank_dim"},
                                                            {"v", "v_low_rank_dim"},
                                                            {"g", "gate_low_rank_dim"}};
  // There as a multiple of the other norms' eps, 64 of the usual 1e-5.
  if (config.norm_eps != 1e-5) mixer.set_number("eps", 64 * config.norm_eps);
  for (const auto& [option, key] : kRanks) {
    const int64_t rank = json.integer_or(key, 0, 1, kMaxWidth);
    if (rank > 0) mixer.set(option, rank);
  }
  ffn.set("hidden", fla_hidden(json, config.width));
  const SublayerSpec time = mixer.build(), channel = ffn.build();
  for (int64_t i = 0; i < layers; ++i) {
    config.sublayers.push_back({{time}});
    config.sublayers.push_back({{channel}});
  }
  return config;
}

ModelConfig rwkv_lm_config(const JsonObject& json) {
  json.refuse("model_type", "no config.json: the tensors of RWKV-LM say it all");
}

// The extents of a matrix that must be there; one of the wanted ones is known (the other is 0).
Shape matrix_shape(const SafetensorsFile& file, const std::string& name, int64_t rows,
                   int64_t columns) {
  const auto extent = [](int64_t n, const char* any) { return n > 0 ? std::to_string(n) : any; };
  const std::string want = fmt::format("({}, {})", extent(rows, "N"), extent(columns, "N"));
  check(file.contains(name), ErrorKind::kFormat, "{}: has no tensor {}, want {}",
        file.path().string(), quote(name), want);
  const Shape shape = file.entry(name).shape;
  const bool fits = shape.rank() == 2 && shape[0] > 0 && shape[1] > 0 &&
                    (rows == 0 || shape[0] == rows) && (columns == 0 || shape[1] == columns) &&
                    shape[0] <= kMaxVocab && shape[1] <= kMaxWidth;
  check(fits, ErrorKind::kFormat, "{}: tensor {} has shape {}, want {}", file.path().string(),
        quote(name), to_string(shape), want);
  return shape;
}

// One more than the highest N of the tensors blocks.N.*; none where there is no time mixing.
int64_t count_blocks(const SafetensorsFile& file) {
  constexpr std::string_view kPrefix = "blocks.";
  int64_t count = 0;
  bool mixes = false;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(kPrefix)) continue;
    const std::string_view rest = std::string_view(name).substr(kPrefix.size());
    int64_t n = 0;
    if (!parse_integer(rest.substr(0, rest.find('.')), &n) || n < 0 || n >= kMaxLayers) continue;
    count = std::max(count, n + 1);
    mixes |= rest.starts_with("0.att.");
  }
  return mixes ? count : 0;
}

std::optional<ModelConfig> infer_rwkv_lm(const SafetensorsFile& file) {
  const int64_t layers = count_blocks(file);
  if (layers == 0 || !file.contains("emb.weight")) return std::nullopt;
  ModelConfig config;
  config.model_type = "rwkv_lm";
  config.norm = NormKind::kLayer;
  config.embedding_norm = true;
  const Shape embedding = matrix_shape(file, "emb.weight", 0, 0);
  config.vocab = embedding[0];
  config.width = embedding[1];
  // The end of a text in the vocabulary that goes with all released models of this size.
  constexpr int64_t kWorldVocab = 65536;
  if (config.vocab == kWorldVocab) config.eos = {0};
  for (int64_t i = 0; i < layers; ++i) {
    const std::string block = fmt::format("blocks.{}.", i), att = block + "att.";
    const Shape r_k = matrix_shape(file, att + "r_k", 0, 0);
    check(r_k[0] * r_k[1] == config.width, ErrorKind::kFormat,
          "{}: tensor {} has shape {}, want (H, P) with H P = {}", file.path().string(),
          quote(att + "r_k"), to_string(r_k), config.width);
    SpecBuilder mixer("rwkv7"), ffn("rwkv7_cmix");
    mixer.set("head", r_k[1]);
    for (const std::string kind : {"w", "a", "v", "g"}) {
      // The first layer's own v is not used; the next one's makes the specs of all layers alike.
      const bool borrowed = kind == "v" && i == 0;
      if (borrowed && layers == 1) continue;
      const std::string name = borrowed ? "blocks.1.att.v1" : att + kind + "1";
      mixer.set(kind, matrix_shape(file, name, config.width, 0)[1]);
    }
    ffn.set("hidden", matrix_shape(file, block + "ffn.key.weight", 0, config.width)[0]);
    config.sublayers.push_back({{mixer.build()}});
    config.sublayers.push_back({{ffn.build()}});
  }
  return config;
}

}  // namespace

const Family kRwkv7Family{.model_type = "rwkv7",
                          .config = fla_config,
                          .weights = fla_weights,
                          .ignorable = nothing_ignorable};

const Family kRwkvLmFamily{.model_type = "rwkv_lm",
                           .config = rwkv_lm_config,
                           .weights = rwkv_lm_weights,
                           .ignorable = rwkv_lm_ignorable,
                           .infer = infer_rwkv_lm};

}  // namespace braid
