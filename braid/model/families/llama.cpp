// Llama: config.json and tensors as in transformers' LlamaForCausalLM.
#include "braid/model/families/family.h"

namespace braid {
namespace {

ModelConfig llama_config(const JsonObject& json) {
  ModelConfig config = common_config(json, /*tied=*/false);
  SpecBuilder attention("attn");
  if (json.flag_or("attention_bias", false)) attention.set("bias", 1).set("out_bias", 1);
  decoder_config(json, std::move(attention), &config);
  return config;
}

}  // namespace

const Family kLlamaFamily{.model_type = "llama",
                          .config = llama_config,
                          .weights = decoder_weights,
                          .ignorable = decoder_ignorable};

}  // namespace braid
