#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "braid/model/checkpoint.h"
#include "braid/model/stack.h"
#include "braid/train/experts/layers.h"

namespace braid {

/// A model on disk with changes: what is not changed stays in its mapped files, so that a copy
/// costs little, and every variant can be built and saved. Refers to the checkpoint.
class EditedModel {
 public:
  explicit EditedModel(const Checkpoint& checkpoint);

  const ModelConfig& config() const { return config_; }
  std::unique_ptr<Stack> build(Context& ctx) const;

  /// Expert i of `layer` becomes `merged`; expert j goes, and those behind it move up by one.
  /// `layer` and `router` are as in the stack that `build` gives before.
  void merge(const ExpertLayer& layer, const ExpertPair& pair, const MergedExpert& merged,
             const RouterValues& router);

  /// A native checkpoint, as save_checkpoint writes it, with the tokenizer of the original.
  void save(const std::filesystem::path& dir) const;

 private:
  // A tensor that took the parameter's place, or the name it has in the checkpoint.
  struct Entry {
    std::string name;
    Tensor tensor;
  };
  std::vector<Tensor> sources(const std::string& name, const Shape& shape) const;

  const Checkpoint* checkpoint_;
  ModelConfig config_;
  std::map<std::string, Entry> changed_;
};

}  // namespace braid
