#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "braid/core/tensor.h"

namespace braid {

/// A file mapped read-only. Tensors made from it share the mapping, which ends with the last one.
class MappedFile : public std::enable_shared_from_this<MappedFile> {
 public:
  /// Throws Error(kIo) naming the path and the system's reason. An empty file has no bytes.
  static std::shared_ptr<MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

  /// A tensor over [offset, offset + shape * dtype). The caller has checked the bounds. Read-only:
  /// writing through it is a fault.
  Tensor tensor(size_t offset, Shape shape, DType dtype);
  /// Tells the kernel that the pages of this range are not needed any more; they come back from
  /// the file when read again.
  void release_pages(const void* begin, size_t bytes) const;

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// If `tensor` lies in a mapped file, drops its pages from memory; otherwise does nothing.
void release_mapped_pages(const Tensor& tensor);

/// Writes PATH by way of a temporary beside it: until `commit` (flush, fsync, rename) nothing of
/// that name changes, and a writer that is destroyed without it leaves nothing behind.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int fd_ = -1;
  std::string buffer_;
  void flush();
};

/// What a process killed while it wrote `path` left beside it: PATH.tmpPID or PATH.tmpPID-NUMBER,
/// where no process PID is alive.
void remove_stale_temporaries(const std::filesystem::path& path);

/// The whole file as text; refuses more than `max_bytes` with Error(kResource).
std::string read_text(const std::filesystem::path& path, size_t max_bytes = size_t{1} << 30);
void write_text(const std::filesystem::path& path, std::string_view text);

}  // namespace braid
