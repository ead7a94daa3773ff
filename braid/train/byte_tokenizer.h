#pragma once

#include <string>

namespace braid {

/// The `bytes` tokenizer as a tokenizer.json that any reader of that format understands: byte-level
/// BPE without merges, ids 0 to 255 the bytes, 256 the end of a document.
std::string byte_tokenizer_json();

}  // namespace braid
