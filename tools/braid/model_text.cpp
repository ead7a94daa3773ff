#include "tools/braid/model_text.h"

#include <algorithm>
#include <cstdlib>

#include "braid/core/error.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "braid/train/document_encoder.h"

namespace braid {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "braid-text-XXXXXX").string();
  check(::mkdtemp(name.data()) != nullptr, ErrorKind::kIo, "cannot create {}", name);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

ModelText::ModelText(Context& ctx, const fs::path& model, const ModelConfig& config,
                     const std::vector<std::string>& data, TextSetOptions options) {
  constexpr int64_t kLongestDefault = 2048;
  if (options.length == 0) {
    const int64_t context = config.max_context;
    options.length = context > 0 ? std::min(context, kLongestDefault) : kLongestDefault;
  }
  const auto encoder = document_encoder(Tokenizer::load(model), static_cast<int32_t>(config.vocab));
  const std::vector<fs::path> paths(data.begin(), data.end());
  data_ = std::make_unique<Dataset>(Dataset::open(paths, encoder, ctx.threads(), cache_.path()));
  set_ = std::make_unique<TextSet>(*data_, options);
}

}  // namespace braid
