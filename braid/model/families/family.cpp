#include "braid/model/families/family.h"

#include <nlohmann/json.hpp>

#include "braid/core/error.h"

namespace braid {

std::span<const Family* const> families() {
  static constexpr const Family* kFamilies[] = {&kLlamaFamily,
                                                &kMistralFamily,
                                                &kMamba2Family,
                                                &kBambaFamily,
                                                &kFalconH1Family,
                                                &kMambaFamily,
                                                &kFalconMambaFamily,
                                                &kStateSpacesFamily,
                                                &kZamba2Family,
                                                &kRwkv7Family,
                                                &kRwkvLmFamily,
                                                &kTttFamily,
                                                &kMixtralFamily,
                                                &kQwen3Family,
                                                &kQwen3MoeFamily,
                                                &kJambaFamily,
                                                &kGraniteMoeHybridFamily,
                                                &kMiniMaxFamily,
                                                &kNemotronHFamily,
                                                &kQwen3NextFamily,
                                                &kDeepseekV3Family};
  return kFamilies;
}

const Family* find_family(std::string_view model_type) {
  for (const Family* family : families()) {
    if (family->model_type == model_type) return family;
  }
  return nullptr;
}

std::string model_type_of(const JsonObject& json) {
  const bool state_spaces = json.has("d_model") && json.has("n_layer");
  if (!json.has("model_type") && state_spaces) return std::string(kStateSpacesFamily.model_type);
  return json.text("model_type");
}

std::optional<ModelConfig> infer_config(const SafetensorsFile& file) {
  for (const Family* family : families()) {
    if (family->infer == nullptr) continue;
    if (auto config = family->infer(file)) return config;
  }
  return std::nullopt;
}

SpecBuilder& SpecBuilder::set_text(std::string key, std::string value) {
  spec_.args.push_back({std::move(key), std::move(value), 0});
  return *this;
}

SpecBuilder& SpecBuilder::value(int64_t value) { return set_text("", std::to_string(value)); }

SpecBuilder& SpecBuilder::set(std::string key, int64_t value) {
  return set_text(std::move(key), std::to_string(value));
}

SpecBuilder& SpecBuilder::set_number(std::string key, double value) {
  return set_text(std::move(key), format_number(value));
}

SpecBuilder& SpecBuilder::set_numbers(std::string key, std::span<const double> values) {
  std::string text;
  for (const double value : values) {
    if (!text.empty()) text += '/';
    text += format_number(value);
  }
  return set_text(std::move(key), std::move(text));
}

namespace {

// {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}; how activations would
// be rounded is not ours to follow: they are not.
ScaleBlock fp8_block(const JsonObject& json) {
  const JsonObject quantization = json.object("quantization_config");
  if (quantization.text("quant_method") != "fp8") quantization.refuse("quant_method", "\"fp8\"");
  if (quantization.text_or("fmt", "e4m3") != "e4m3") quantization.refuse("fmt", "\"e4m3\"");
  const std::vector<int64_t> block =
      quantization.integers_or_one("weight_block_size", 1, kMaxWidth);
  if (block.size() != 2) quantization.refuse("weight_block_size", "two integers");
  return {.rows = block[0], .columns = block[1]};
}

}  // namespace

ModelConfig common_config(const JsonObject& json, bool tied) {
  ModelConfig config;
  config.model_type = json.text("model_type");
  config.vocab = json.integer("vocab_size", 1, kMaxVocab);
  config.width = json.integer("hidden_size", 1, kMaxWidth);
  config.tied = json.flag_or("tie_word_embeddings", tied);
  if (json.has("quantization_config")) config.fp8_block = fp8_block(json);
  return config;
}

void want_silu(const JsonObject& json, std::string_view key) {
  if (json.text_or(key, "silu") != "silu") json.refuse(key, "\"silu\"");
}

}  // namespace braid
