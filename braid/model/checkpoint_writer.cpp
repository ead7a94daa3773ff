#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/checkpoint.h"
#include "braid/model/json.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// Removed with all it holds unless it has been renamed away.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    fs::remove_all(path_, error);
    fs::create_directories(path_, error);
    check(!error, ErrorKind::kIo, "cannot create {}: {}", path_.string(), error.message());
  }
  ~TemporaryDirectory() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Makes what was written into the directory survive a power cut.
void sync(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  check(synced, ErrorKind::kIo, "cannot sync {}: {}", path.string(), std::strerror(error));
}

// A mistyped --out must not cost anybody a directory of other things.
void check_replaceable(const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir, error)) return;
  check(fs::is_directory(dir, error), ErrorKind::kIo, "{}: exists and is not a directory",
        dir.string());
  fs::directory_iterator entries(dir, error);
  check(!error, ErrorKind::kIo, "cannot read {}: {}", dir.string(), error.message());
  if (entries == fs::directory_iterator()) return;
  for (const auto& entry : entries) {
    const fs::path extension = entry.path().extension();
    check(entry.is_regular_file(error) && (extension == ".json" || extension == ".safetensors"),
          ErrorKind::kIo, "{}: holds {}, which no checkpoint does; want an empty directory",
          dir.string(), quote(entry.path().filename().string()));
  }
  check(fs::exists(dir / "config.json", error), ErrorKind::kIo,
        "{}: holds files but no config.json; want an empty directory or a checkpoint",
        dir.string());
}

// `fresh` takes the name `dir`; what was there goes to `fresh`, or beside where the system cannot
// exchange two names at once.
void replace(const fs::path& fresh, const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir, error)) {
    fs::rename(fresh, dir, error);
    check(!error, ErrorKind::kIo, "cannot write {}: {}", dir.string(), error.message());
    return;
  }
#if defined(__linux__) && defined(RENAME_EXCHANGE)
  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) == 0) return;
  check(errno == EINVAL || errno == ENOSYS, ErrorKind::kIo, "cannot replace {}: {}", dir.string(),
        std::strerror(errno));
#endif
  fs::path old = fresh;
  old += ".old";
  fs::rename(dir, old, error);
  check(!error, ErrorKind::kIo, "cannot replace {}: {}", dir.string(), error.message());
  fs::rename(fresh, dir, error);
  if (error) {
    std::error_code undo;
    fs::rename(old, dir, undo);
    fail(ErrorKind::kIo, "cannot write {}: {}", dir.string(), error.message());
  }
  fs::remove_all(old, error);
}

void write_tensors(const fs::path& path, const CheckpointContents& contents) {
  std::vector<SafetensorsDeclaration> declarations;
  for (const auto& [name, tensor] : contents.tensors) {
    const bool own = tensor.rank() < 2 || contents.exact.contains(name);
    const DType dtype = own ? tensor.dtype() : contents.dtype;
    declarations.push_back({name, tensor.shape(), dtype});
  }
  SafetensorsWriter writer(path, std::move(declarations), {{"format", "braid"}});
  for (const auto& [name, tensor] : contents.tensors) writer.write(tensor);
  writer.commit();
}

}  // namespace

void save_checkpoint(const fs::path& dir, const CheckpointContents& contents) {
  check(contents.config != nullptr, "save_checkpoint: no config");
  fs::path target = fs::absolute(dir).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "out/"
  check_replaceable(target);
  remove_stale_temporaries(target);
  const TemporaryDirectory temporary(target.string() + ".tmp" + std::to_string(::getpid()));

  ModelConfig config = *contents.config;
  config.dtype = contents.dtype;
  write_text(temporary.path() / "config.json", print_config(config));
  write_tensors(temporary.path() / "model.safetensors", contents);
  if (!contents.tokenizer.empty()) {
    write_text(temporary.path() / "tokenizer.json", read_text(contents.tokenizer));
  }
  if (contents.extra) contents.extra(temporary.path());
  sync(temporary.path());
  replace(temporary.path(), target);
  sync(target.parent_path());
}

}  // namespace braid
