#include "braid/infer/model.h"

#include <algorithm>

#include "braid/model/checkpoint.h"

namespace braid {

Model Model::load(Context& ctx, const std::filesystem::path& directory,
                  const FilterFor& filter_for) {
  const Checkpoint checkpoint = Checkpoint::open(directory);
  Model model;
  model.directory_ = directory;
  model.fingerprint_ = checkpoint.fingerprint();
  model.stack_ = std::make_unique<Stack>(checkpoint.config());
  model.stack_->load(ctx, checkpoint, filter_for ? filter_for(*model.stack_) : ParameterFilter());
  // The second is what RWKV-LM calls the vocabulary of its released models.
  for (const char* name : {"tokenizer.json", "rwkv_vocab_v20230424.txt"}) {
    if (model.tokenizer_ != nullptr || !std::filesystem::exists(directory / name)) continue;
    model.tokenizer_ = Tokenizer::load(directory / name);
  }
  return model;
}

const Tokenizer& Model::tokenizer() const {
  check(tokenizer_ != nullptr, ErrorKind::kFormat,
        "{}: has no tokenizer.json, want one (or give token ids)", directory_.string());
  return *tokenizer_;
}

Session Model::session(const Context& ctx, SessionOptions options) const {
  if (tokenizer_ != nullptr && options.drawn_vocab == 0) {
    options.drawn_vocab = tokenizer_->vocab_size();
  }
  return Session(*stack_, fingerprint_, ctx, options);
}

bool Model::ends(int32_t token) const {
  const auto& eos = config().eos;
  return std::find(eos.begin(), eos.end(), token) != eos.end();
}

}  // namespace braid
