#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "braid/core/tensor.h"
#include "braid/model/config.h"
#include "braid/model/safetensors.h"

namespace braid {

struct Family;

/// A model directory, open for reading: config.json and the tensors of model.safetensors or of its
/// shards, under the native names of the parameters:
///
///   embedding.weight (V, D)   sublayers.I.norm.weight   sublayers.I.NAME...   final_norm.weight
///   head.weight (V, D), absent where the head is tied
///
/// NAME is the registry's name of the sublayer. A family's table translates the names; a native
/// checkpoint carries them as they are.
///
/// Thread safety: none; the tensors handed out may be read from anywhere.
class Checkpoint {
 public:
  /// The config's dtype becomes that of the matrices on disk: bf16 stays bf16 unless the config
  /// says float32; everything else is f32.
  static Checkpoint open(const std::filesystem::path& dir,
                         std::span<const std::string_view> known = {});
  Checkpoint(Checkpoint&&) noexcept;
  ~Checkpoint();

  const ModelConfig& config() const { return config_; }
  const std::filesystem::path& directory() const { return directory_; }

  /// Whether all tensors of this parameter are there.
  bool contains(std::string_view name) const;
  /// The tensors whose rows, one after another, are the parameter: mapped, read-only, f32, bf16 or
  /// f16; of fp8 the values, in bf16. Throws Error(kFormat) where one is missing or they do not
  /// make up `wanted`.
  std::vector<Tensor> sources(std::string_view name, const Shape& wanted) const;
  /// Throws where the file has tensors that nobody asked for: the model would not be the one that
  /// was saved.
  void expect_all_used() const;

  /// 64 bits over what the model computes: the config, and of every tensor the name, dtype, shape
  /// and samples of its contents. Reads a few pages a tensor.
  uint64_t fingerprint() const;

 private:
  Checkpoint();
  struct Names;
  std::filesystem::path directory_;
  ModelConfig config_;
  SafetensorsFile file_;
  std::unique_ptr<Names> names_;
};

/// What a checkpoint directory is written from.
struct CheckpointContents {
  const ModelConfig* config = nullptr;
  std::span<const NamedTensor> tensors;  // under native names, f32 or bf16
  /// Of matrices (rank 2 and more) on disk; smaller tensors keep their own.
  DType dtype = DType::kF32;
  std::set<std::string> exact;  // names of matrices that keep their own dtype
  /// Copied to tokenizer.json unless empty.
  std::filesystem::path tokenizer;
  /// Writes more files (the state of an optimiser) into the directory it is given.
  std::function<void(const std::filesystem::path& dir)> extra;
};

/// Writes a native checkpoint: everything goes into a directory beside `dir`, is synced, and takes
/// the place of `dir` in one step, so that at any instant there is one whole checkpoint. An
/// existing `dir` must be empty or a checkpoint: one that holds config.json and nothing but
/// .json and .safetensors files.
void save_checkpoint(const std::filesystem::path& dir, const CheckpointContents& contents);

}  // namespace braid
