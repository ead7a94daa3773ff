// Any bytes as a tokenizer.json: they are refused with an Error, or the tokenizer that they make
// encodes and decodes a short text, or refuses that.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "braid/core/error.h"
#include "braid/model/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kBytesMax = size_t{1} << 16;
  if (size > kBytesMax) return 0;
  try {
    const auto tokenizer = braid::Tokenizer::from_json({reinterpret_cast<const char*>(data), size});
    const auto ids =
        tokenizer->encode("It's caf\u00e9 12,  \n\u4ee5<|endoftext|>", {.special = true});
    (void)tokenizer->decode(ids);
  } catch (const braid::Error&) {
  }
  return 0;
}
