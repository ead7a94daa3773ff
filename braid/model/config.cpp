#include "braid/model/config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/families/family.h"
#include "braid/model/json.h"
#include "braid/model/stack_spec.h"

namespace braid {
namespace {

using nlohmann::json;

constexpr JsonLimits kConfigLimits{
    .max_bytes = size_t{16} << 20, .max_depth = 32, .max_values = 1 << 20, .python_numbers = true};

// A native config may be written by hand, so the names of other families' keys are understood.
std::string_view alias(const JsonObject& config, std::initializer_list<std::string_view> keys) {
  std::string_view found;
  for (const std::string_view key : keys) {
    if (!config.has(key)) continue;
    check(found.empty(), ErrorKind::kFormat, "{}: both {} and {} are given, want one of them",
          config.source(), found, key);
    found = key;
  }
  return found.empty() ? *keys.begin() : found;
}

ModelConfig native_config(const JsonObject& object, std::span<const std::string_view> known) {
  ModelConfig config;
  config.vocab = object.integer(alias(object, {"vocab_size", "vocab"}), 1, kMaxVocab);
  config.width = object.integer(alias(object, {"hidden_size", "width"}), 1, kMaxWidth);
  config.tied = object.flag_or("tie_word_embeddings", false);
  const std::string norm = object.text_or("norm", "rms");
  if (norm != "rms" && norm != "layer") object.refuse("norm", "\"rms\" or \"layer\"");
  config.norm = norm == "rms" ? NormKind::kRms : NormKind::kLayer;
  config.norm_eps = object.number_or(
      alias(object, {"norm_eps", "rms_norm_eps", "layer_norm_epsilon"}), 1e-5, 0, 1);
  config.embedding_norm = object.flag_or("embedding_norm", false);
  config.embedding_scale = object.number_or("embedding_scale", 1, -1e6, 1e6);
  config.logit_scale = object.number_or("logit_scale", 1, -1e6, 1e6);
  config.max_context = object.integer_or("max_position_embeddings", 0, 0, kMaxPositions);
  try {
    config.sublayers = parse_stack(object.text("stack"), known);
  } catch (const Error& error) {
    fail(ErrorKind::kFormat, "{}: {}", object.source(), error.what());
  }
  return config;
}

void read_dtype(const JsonObject& object, ModelConfig* config) {
  const std::string_view key = object.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = object.text_or(key, "float32");
  config->dtype_given = object.has(key);
  // Half precision is widened, not rounded to bfloat16.
  if (name == "bfloat16") {
    config->dtype = DType::kBF16;
  } else if (name != "float32" && name != "float16") {
    object.refuse(key, "\"float32\", \"bfloat16\" or \"float16\"");
  }
}

void read_token_ids(const JsonObject& object, ModelConfig* config) {
  const int64_t last = config->vocab - 1;
  const auto bos = object.integers_or_one("bos_token_id", 0, last);
  const auto eos = object.integers_or_one("eos_token_id", 0, last);
  if (!bos.empty()) config->bos = bos.front();
  if (!eos.empty()) config->eos = eos;
}

}  // namespace

std::vector<std::string_view> model_types() {
  std::vector<std::string_view> types = {"braid"};
  for (const Family* family : families()) types.push_back(family->model_type);
  return types;
}

ModelConfig parse_config(const json& root, const std::string& source,
                         std::span<const std::string_view> known) {
  const JsonObject object(root, source);
  const std::string type = model_type_of(object);
  const Family* family = find_family(type);
  if (family == nullptr && type != "braid") {
    object.refuse("model_type", fmt::format("one of {}", fmt::join(model_types(), ", ")));
  }
  ModelConfig config = family == nullptr ? native_config(object, known) : family->config(object);
  read_dtype(object, &config);
  read_token_ids(object, &config);
  return config;
}

ModelConfig load_config(const std::filesystem::path& dir, std::span<const std::string_view> known) {
  std::error_code error;
  const bool is_directory = std::filesystem::is_directory(dir, error);
  const std::filesystem::path path = is_directory ? dir / "config.json" : dir;
  ModelConfig config = parse_config(read_json(path, kConfigLimits), path.string(), known);
  // What `generate` stops at is decided there, and may be a longer list than in config.json.
  const std::filesystem::path generation = path.parent_path() / "generation_config.json";
  if (std::filesystem::exists(generation, error)) {
    const json root = read_json(generation, kConfigLimits);
    read_token_ids(JsonObject(root, generation.string()), &config);
  }
  return config;
}

std::string print_config(const ModelConfig& config) {
  nlohmann::ordered_json root;
  root["model_type"] = "braid";
  root["stack"] = print_stack(config.sublayers);
  root["vocab_size"] = config.vocab;
  root["hidden_size"] = config.width;
  root["norm"] = config.norm == NormKind::kRms ? "rms" : "layer";
  root["norm_eps"] = config.norm_eps;
  root["tie_word_embeddings"] = config.tied;
  if (config.embedding_norm) root["embedding_norm"] = true;
  if (config.embedding_scale != 1) root["embedding_scale"] = config.embedding_scale;
  if (config.logit_scale != 1) root["logit_scale"] = config.logit_scale;
  if (config.max_context > 0) root["max_position_embeddings"] = config.max_context;
  root["dtype"] = config.dtype == DType::kBF16 ? "bfloat16" : "float32";
  if (config.bos) root["bos_token_id"] = *config.bos;
  if (!config.eos.empty()) root["eos_token_id"] = config.eos;
  return root.dump(2) + "\n";
}

}  // namespace braid
