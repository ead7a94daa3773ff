#include "braid/core/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace braid {
namespace {

[[noreturn]] void fail_io(const char* what, const std::filesystem::path& path) {
  fail(ErrorKind::kIo, "cannot {} {}: {}", what, path.string(), std::strerror(errno));
}

class MappedStorage final : public Storage {
 public:
  MappedStorage(std::shared_ptr<MappedFile> file, void* data, size_t bytes)
      : Storage(data, bytes, Device{}), file_(std::move(file)) {}
  const MappedFile& file() const { return *file_; }

 private:
  std::shared_ptr<MappedFile> file_;
};

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_io("open", path);
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    ::close(fd);
    fail_io("stat", path);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    fail(ErrorKind::kIo, "cannot open {}: not a regular file", path.string());
  }
  auto file = std::shared_ptr<MappedFile>(new MappedFile);
  file->path_ = path;
  file->size_ = static_cast<size_t>(info.st_size);
  if (file->size_ > 0) {
    void* data = ::mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      file->size_ = 0;
      ::close(fd);
      fail_io("map", path);
    }
    file->data_ = static_cast<std::byte*>(data);
  }
  ::close(fd);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Tensor MappedFile::tensor(size_t offset, Shape shape, DType dtype) {
  const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
  check(offset <= size_ && bytes <= size_ - offset, ErrorKind::kFormat,
        "{}: a tensor of {} bytes at offset {} ends past the file's {} bytes", path_.string(),
        bytes, offset, size_);
  auto storage = std::make_shared<MappedStorage>(shared_from_this(), data_ + offset, bytes);
  return Tensor(std::move(storage), 0, shape, dtype, shape.rank() == 0 ? 1 : shape.count(1));
}

void MappedFile::release_pages(const void* begin, size_t bytes) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const auto first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
  if (last <= first) return;
  auto* whole_pages = static_cast<char*>(const_cast<void*>(begin)) + (first - address);
  ::madvise(whole_pages, last - first, MADV_DONTNEED);
}

void release_mapped_pages(const Tensor& tensor) {
  if (const auto* mapped = dynamic_cast<const MappedStorage*>(tensor.storage().get())) {
    mapped->file().release_pages(tensor.raw(), tensor.bytes());
  }
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  // Renaming over a device or a pipe would replace it, and over a link would cut it.
  std::error_code ignored;
  const auto status = std::filesystem::status(path_, ignored);
  check(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status),
        ErrorKind::kIo, "cannot write {}: not a regular file", path_.string());
  if (std::filesystem::is_symlink(path_, ignored)) {
    path_ = std::filesystem::weakly_canonical(path_);
  }
  for (int number = 0; fd_ < 0; ++number) {
    temporary_ = path_;
    temporary_ += fmt::format(".tmp{}-{}", ::getpid(), number);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    // The name may be that of another writer of this path, in this process too.
    if (fd_ < 0 && errno != EEXIST) fail_io("create", temporary_);
  }
}

void remove_stale_temporaries(const std::filesystem::path& path) {
  const std::string prefix = path.filename().string() + ".tmp";
  std::error_code ignored;
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    pid_t pid = 0;
    const char* end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, pid);
    if (error != std::errc() || (rest != end && *rest != '-') || pid <= 1) continue;
    if (::kill(pid, 0) != 0 && errno == ESRCH) std::filesystem::remove_all(entry.path(), ignored);
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  buffer_.append(static_cast<const char*>(data), bytes);
  if (buffer_.size() >= (size_t{1} << 20)) flush();
}

void AtomicFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("write", path_);
    done += static_cast<size_t>(n);
  }
  buffer_.clear();
}

void AtomicFile::commit() {
  flush();
  if (::fsync(fd_) != 0) fail_io("sync", path_);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    errno = error;
    fail_io("write", path_);
  }
  // The rename itself must survive a power cut, so the directory is synced as well.
  const auto parent = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    ::fsync(directory);
    ::close(directory);
  }
}

std::string read_text(const std::filesystem::path& path, size_t max_bytes) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  check(bytes.size() <= max_bytes, ErrorKind::kResource, "{}: {} bytes, want at most {}",
        path.string(), bytes.size(), max_bytes);
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace braid
