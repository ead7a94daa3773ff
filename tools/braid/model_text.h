#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "braid/model/config.h"
#include "braid/train/loader.h"

namespace braid {

/// A folder for the files of one call, removed with it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Text as the tokenizer of a model directory reads it.
class ModelText {
 public:
  /// `options.length` 0: the model's own context, at most 2048.
  ModelText(Context& ctx, const std::filesystem::path& model, const ModelConfig& config,
            const std::vector<std::string>& data, TextSetOptions options);
  const TextSet& set() const { return *set_; }

 private:
  TemporaryFolder cache_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<TextSet> set_;
};

}  // namespace braid
