// Mistral: Llama's layout with a sliding window, as in transformers' MistralForCausalLM.
#include <nlohmann/json.hpp>

#include "braid/model/families/family.h"

namespace braid {
namespace {

ModelConfig mistral_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  // An absent window is 4096; the later releases say null, which is full attention.
  const bool written = json.value().contains("sliding_window");
  const int64_t window =
      json.integer_or("sliding_window", written ? 0 : 4096, 1, SpecOptions::kMaxInteger);
  SpecBuilder attention(window > 0 ? "swa" : "attn");
  if (window > 0) attention.value(window);
  decoder_config(json, std::move(attention), &config);
  return config;
}

}  // namespace

const Family kMistralFamily{.model_type = "mistral",
                            .config = mistral_config,
                            .weights = decoder_weights,
                            .ignorable = decoder_ignorable};

}  // namespace braid
