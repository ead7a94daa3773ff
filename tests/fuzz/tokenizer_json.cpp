// Any bytes as a tokenizer.json are refused with an Error, or make a tokenizer that encodes a short
// text, or refuses that, and whose ids decode to well-formed text, the same at once and one by one.
#include "braid/model/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kBytesMax = size_t{1} << 16;
  if (size > kBytesMax) return 0;
  braid::fuzz::accepted([&] {
    const auto tokenizer = braid::Tokenizer::from_json(braid::fuzz::text(data, size));
    const auto ids =
        tokenizer->encode("It's caf\u00e9 12,  \n\u4ee5<|endoftext|>", {.special = true});
    const std::string whole = tokenizer->decode(ids);
    braid::fuzz::require(!braid::invalid_utf8_offset(whole), "decoded text is not UTF-8");
    braid::StreamingDecoder decoder(*tokenizer);
    std::string parts;
    for (const int32_t id : ids) parts += decoder.push(id);
    braid::fuzz::require(parts + decoder.finish() == whole, "streamed text is not the whole text");
  });
  return 0;
}
