#include "braid/train/document_encoder.h"

#include <utility>

#include "braid/core/error.h"

namespace braid {

DocumentEncoder document_encoder(std::shared_ptr<const Tokenizer> tokenizer, int32_t vocab) {
  check(tokenizer->vocab_size() <= vocab,
        "tokenizer: {} tokens, the model's vocabulary has {}: want one that fits",
        tokenizer->vocab_size(), vocab);
  // What the tokenizer itself puts around a text shows on a short one.
  const std::vector<int32_t> plain = tokenizer->encode("a");
  const std::vector<int32_t> whole = tokenizer->encode("a", {.special = true});
  const std::optional<int32_t> end = tokenizer->end_of_document_id();
  DocumentEncoder encoder{.vocab = vocab};
  if (end) {
    if (whole.front() == plain.front()) encoder.start = *end;
    if (whole.back() != *end) encoder.end = *end;
  }
  encoder.fingerprint = tokenizer->fingerprint();
  encoder.encode = [tokenizer = std::move(tokenizer)](std::string_view text) {
    return tokenizer->encode(text, {.special = true});
  };
  return encoder;
}

}  // namespace braid
