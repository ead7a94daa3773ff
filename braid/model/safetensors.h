#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "braid/core/dtype.h"
#include "braid/core/file.h"
#include "braid/core/shape.h"
#include "braid/core/tensor.h"

namespace braid {

/// The safetensors format: 8 bytes of header length (little endian), a JSON header
/// {name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}, then the tensors' bytes.
/// Source: https://github.com/huggingface/safetensors (format section of the README).
struct SafetensorsEntry {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
  size_t offset = 0;  // from the start of the file
  size_t bytes = 0;
  bool fp8_e4m3 = false;  // F8_E4M3, read as its codes: dtype is u8
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Reads the header of a hostile file. Refuses, in one line that names the file and the tensor:
/// a cut or lying header, repeated names, unknown dtypes, ranks above Shape::kMaxRank, shapes whose
/// bytes are not those of their offsets, and tensors that overlap, leave gaps or miss the end.
SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, std::string_view source);

/// The tensors of one file or of all shards of an index, mapped, not read.
///
/// Thread safety: const members may be called from several threads.
class SafetensorsFile {
 public:
  /// `path` is a .safetensors file, a .safetensors.index.json, or a directory that holds
  /// model.safetensors or model.safetensors.index.json.
  static SafetensorsFile open(const std::filesystem::path& path);

  std::vector<std::string> names() const;  // sorted
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// Shape and dtype without touching the data. Throws where there is no such tensor.
  const SafetensorsEntry& entry(std::string_view name) const;
  /// The mapped tensor, read-only; copied only where the file does not align it to its dtype.
  Tensor tensor(std::string_view name) const;
  /// As above, and the shape must be this one.
  Tensor tensor(std::string_view name, const Shape& wanted) const;

  /// Of the first file.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  struct Located {
    SafetensorsEntry entry;
    std::shared_ptr<MappedFile> file;
  };
  std::filesystem::path path_;
  std::map<std::string, Located, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;

  void add_file(const std::filesystem::path& path);
  void add_index(const std::filesystem::path& path);
  const Located* find(std::string_view name) const;
  const Located& located(std::string_view name) const;
};

/// A tensor to be written.
struct SafetensorsDeclaration {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
};

/// Writes a file in one pass: the header from the declarations, then the tensors in their order.
/// Nothing of that name changes before `commit`.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsDeclaration> tensors,
                    const std::map<std::string, std::string>& metadata = {});

  /// The next tensor, whole: on the host, of the declared shape (rows may be strided), of the
  /// declared dtype or float32/bfloat16, which are converted into each other.
  void write(const Tensor& tensor);
  /// The next bytes of the data, for tensors that do not lie in one piece.
  void append(const void* data, size_t bytes);
  /// Refuses a file whose tensors are not all complete.
  void commit();

 private:
  AtomicFile file_;
  std::string source_;
  std::vector<SafetensorsDeclaration> tensors_;
  size_t next_ = 0;  // the tensor being written
  size_t done_ = 0;  // its bytes so far

  void skip_complete();
  void append_converted(const Tensor& rows, DType dtype);
};

using NamedTensor = std::pair<std::string, Tensor>;

/// All at once, with the dtypes they have.
void save_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace braid
