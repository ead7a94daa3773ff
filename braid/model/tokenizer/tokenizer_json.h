#pragma once

// The components of a Hugging Face tokenizer.json, from JSON to the classes that do the work.
// Names and meanings: huggingface/tokenizers, Rust `Deserialize` of each component.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "braid/model/tokenizer/detokenizer.h"
#include "braid/model/tokenizer/normalizer.h"
#include "braid/model/tokenizer/pre_tokenizer.h"

namespace braid::tok {

inline constexpr size_t kComponentsMax = 64;  // within one sequence
inline constexpr size_t kLiteralBytesMax = 1024;

Normalizer parse_normalizer(const nlohmann::json& json);

struct PreTokenizerSpec {
  PreTokenizer pre_tokenizer;
  bool byte_level = false;
};
PreTokenizerSpec parse_pre_tokenizer(const nlohmann::json& json);

DetokenizeRules parse_decoder(const nlohmann::json& json);

/// Ids put before and after every text.
struct Template {
  std::vector<int32_t> prefix, suffix;
};
Template parse_post_processor(const nlohmann::json& json);

}  // namespace braid::tok
