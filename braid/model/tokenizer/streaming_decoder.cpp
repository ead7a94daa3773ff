#include "braid/model/tokenizer/parts.h"

namespace braid {

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  tok::TextBuilder text(parts_->detokenizer, options.skip_special, options.continuation);
  std::string out;
  for (const int32_t id : ids) text.push(id, out);
  text.finish(out);
  return out;
}

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, DecodeOptions options)
    : text_(std::make_unique<tok::TextBuilder>(tokenizer.parts().detokenizer, options.skip_special,
                                               options.continuation)) {}
StreamingDecoder::~StreamingDecoder() = default;
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder& StreamingDecoder::operator=(StreamingDecoder&&) noexcept = default;

std::string StreamingDecoder::push(int32_t id) {
  std::string out;
  text_->push(id, out);
  return out;
}

std::string StreamingDecoder::finish() {
  std::string out;
  text_->finish(out);
  return out;
}

}  // namespace braid
