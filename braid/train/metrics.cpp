#include "braid/train/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "braid/core/error.h"

namespace braid {
namespace {

[[noreturn]] void fail_io(const char* what, const std::filesystem::path& path) {
  fail(ErrorKind::kIo, "cannot {} {}: {}", what, path.string(), std::strerror(errno));
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, uint64_t keep_bytes)
    : path_(path), bytes_(keep_bytes) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_io("create", path);
  struct stat info {};
  const bool known = ::fstat(fd_, &info) == 0;
  const auto size = static_cast<uint64_t>(info.st_size);
  if (!known || size < keep_bytes) {
    ::close(fd_);
    if (!known) fail_io("stat", path);
    fail(ErrorKind::kFormat, "{}: {} bytes, the checkpoint was made at {}", path.string(), size,
         keep_bytes);
  }
  if (::ftruncate(fd_, static_cast<off_t>(keep_bytes)) != 0 ||
      ::lseek(fd_, 0, SEEK_END) != static_cast<off_t>(keep_bytes)) {
    ::close(fd_);
    fail_io("write", path);
  }
}

MetricsLog::~MetricsLog() {
  if (fd_ >= 0) ::close(fd_);
}

void MetricsLog::write(const nlohmann::json& line) {
  const std::string text = line.dump() + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("write", path_);
    done += static_cast<size_t>(n);
  }
  bytes_ += text.size();
}

uint64_t MetricsLog::sync() {
  if (::fsync(fd_) != 0 && errno != EINVAL) fail_io("sync", path_);
  return bytes_;
}

}  // namespace braid
