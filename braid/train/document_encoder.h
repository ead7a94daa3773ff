#pragma once

#include <memory>

#include "braid/model/tokenizer/tokenizer.h"
#include "braid/train/dataset.h"

namespace braid {

/// How documents of a corpus become tokens with `tokenizer`: its own way of beginning a text, if it
/// has one, the text, the end of a document. Where nothing would come first, the end-of-document
/// token does, so that the first token of a text is predicted as well. `vocab` is the model's,
/// which may be larger than the tokenizer's. Throws Error(kUsage) where it is smaller.
DocumentEncoder document_encoder(std::shared_ptr<const Tokenizer> tokenizer, int32_t vocab);

}  // namespace braid
