#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "braid/model/safetensors.h"

namespace braid {

/// The checkpoints of one run, `FOLDER/step-N/` with
///
///   tensors.safetensors   master weights and optimiser moments, float32
///   trainer.json          everything else
///
/// Invariant: a folder named step-N is complete. It is filled under another name and renamed when
/// all of it is on the disk, so that a kill at any instant leaves the earlier ones untouched.
///
/// Thread safety: one thread at a time; one process per folder.
class CheckpointStore {
 public:
  /// Keeps the newest `keep` checkpoints; at least 1.
  CheckpointStore(std::filesystem::path folder, int keep);

  /// Steps of the complete checkpoints, rising.
  std::vector<int64_t> steps() const;
  std::optional<int64_t> latest() const;

  void save(int64_t step, std::span<const NamedTensor> tensors, const nlohmann::json& trainer);

  SafetensorsFile tensors(int64_t step) const;
  nlohmann::json trainer(int64_t step) const;

  /// Removes what an interrupted save or removal left behind.
  void clean();

 private:
  std::filesystem::path folder_;
  int keep_;

  std::filesystem::path at(int64_t step) const;
  void remove(const std::filesystem::path& checkpoint);
};

}  // namespace braid
