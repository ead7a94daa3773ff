#pragma once

// What a tokenizer is made of; private to this folder.

#include <variant>

#include "braid/model/tokenizer/added_tokens.h"
#include "braid/model/tokenizer/bpe.h"
#include "braid/model/tokenizer/byte_trie.h"
#include "braid/model/tokenizer/detokenizer.h"
#include "braid/model/tokenizer/normalizer.h"
#include "braid/model/tokenizer/pre_tokenizer.h"
#include "braid/model/tokenizer/tokenizer.h"

namespace braid {

namespace tok {

struct ByteModel {};
struct WorldModel {
  ByteTrie trie;  // holds all 256 bytes
};

inline constexpr std::string_view kEndOfDocument = "<|endoftext|>";
inline constexpr int32_t kIdsMax = 1 << 20;

uint64_t hash_bytes(std::string_view bytes);

}  // namespace tok

/// Text -> raw added tokens -> normalizer -> normalized added tokens -> words -> model.
struct Tokenizer::Parts {
  std::variant<tok::ByteModel, tok::WorldModel, tok::Bpe> model;
  tok::AddedTokens raw_tokens, normalized_tokens;
  tok::Vocabulary added_ids;
  tok::Normalizer normalizer;
  tok::PreTokenizer pre_tokenizer;
  std::vector<int32_t> prefix, suffix;  // of the post-processor
  tok::Detokenizer detokenizer;
  std::optional<int32_t> bos, eos, end_of_document;
  uint64_t fingerprint = 0;
};

namespace tok {

std::unique_ptr<Tokenizer::Parts> parse_tokenizer_json(std::string_view json);
std::unique_ptr<Tokenizer::Parts> parse_world_vocabulary(std::string_view text);

}  // namespace tok
}  // namespace braid
