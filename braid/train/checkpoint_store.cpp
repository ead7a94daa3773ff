#include "braid/train/checkpoint_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <string_view>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/json.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-", kPartial = ".partial";
constexpr const char* kTensors = "tensors.safetensors";
constexpr const char* kTrainer = "trainer.json";

void check_io(const std::error_code& error, const char* what, const fs::path& path) {
  check(!error, ErrorKind::kIo, "cannot {} {}: {}", what, path.string(), error.message());
}

// N of "step-N"; nothing else is a checkpoint.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  int64_t step = 0;
  const auto [rest, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || rest != end || step < 0) return std::nullopt;
  return step;
}

// A rename lasts through a power cut once its directory is on the disk.
void sync_directory(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path folder, int keep)
    : folder_(std::move(folder)), keep_(keep) {
  check(keep >= 1, "checkpoints: keep {}, want at least 1", keep);
}

fs::path CheckpointStore::at(int64_t step) const {
  return folder_ / fmt::format("{}{}", kPrefix, step);
}

std::vector<int64_t> CheckpointStore::steps() const {
  std::vector<int64_t> steps;
  if (!fs::exists(folder_)) return steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  check_io(error, "list", folder_);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<int64_t> CheckpointStore::latest() const {
  const std::vector<int64_t> all = steps();
  if (all.empty()) return std::nullopt;
  return all.back();
}

void CheckpointStore::save(int64_t step, std::span<const NamedTensor> tensors,
                           const nlohmann::json& trainer) {
  const fs::path target = at(step);
  fs::path partial = target;
  partial += kPartial;
  std::error_code error;
  fs::remove_all(partial, error);
  fs::create_directories(partial, error);
  check_io(error, "create", partial);
  save_safetensors(partial / kTensors, tensors);
  write_text(partial / kTrainer, trainer.dump(2) + "\n");
  if (fs::exists(target)) remove(target);
  fs::rename(partial, target, error);
  check_io(error, "rename", partial);
  sync_directory(folder_);

  const std::vector<int64_t> all = steps();
  for (size_t i = 0; i + static_cast<size_t>(keep_) < all.size(); ++i) remove(at(all[i]));
}

void CheckpointStore::remove(const fs::path& checkpoint) {
  // Renamed first: a kill in the middle must not leave half a checkpoint under a good name.
  fs::path dying = checkpoint;
  dying += kPartial;
  std::error_code error;
  fs::remove_all(dying, error);
  fs::rename(checkpoint, dying, error);
  check_io(error, "rename", checkpoint);
  fs::remove_all(dying, error);
  check_io(error, "remove", dying);
}

void CheckpointStore::clean() {
  if (!fs::exists(folder_)) return;
  std::vector<fs::path> left_over;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kPartial)) left_over.push_back(entry.path());
  }
  std::error_code error;
  for (const fs::path& path : left_over) {
    fs::remove_all(path, error);
    check_io(error, "remove", path);
  }
}

SafetensorsFile CheckpointStore::tensors(int64_t step) const {
  return SafetensorsFile::open(at(step) / kTensors);
}

nlohmann::json CheckpointStore::trainer(int64_t step) const {
  return read_json(at(step) / kTrainer);
}

}  // namespace braid
