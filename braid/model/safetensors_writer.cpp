#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/model/json.h"
#include "braid/model/safetensors.h"

namespace braid {
namespace {

constexpr size_t kMaxHeaderBytes = 100'000'000;  // what readers accept

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kF64:
      return "F64";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

size_t bytes_of(const SafetensorsDeclaration& tensor) {
  return static_cast<size_t>(tensor.shape.checked_count()) * size_of(tensor.dtype);
}

std::string encode_header(std::span<const SafetensorsDeclaration> tensors,
                          const std::map<std::string, std::string>& metadata,
                          std::string_view source) {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!metadata.empty()) root["__metadata__"] = metadata;
  size_t offset = 0;
  for (const SafetensorsDeclaration& tensor : tensors) {
    check(!tensor.name.empty() && tensor.name != "__metadata__" && !root.contains(tensor.name),
          "{}: tensor {} cannot be written, want distinct names", source, quote(tensor.name));
    const size_t end = offset + bytes_of(tensor);
    const auto dims = tensor.shape.dims();
    root[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                         {"shape", std::vector<int64_t>(dims.begin(), dims.end())},
                         {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = root.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins aligned
  check(text.size() <= kMaxHeaderBytes, ErrorKind::kResource,
        "{}: a header of {} bytes, want at most {}", source, text.size(), kMaxHeaderBytes);
  return text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<SafetensorsDeclaration> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path), source_(path.string()), tensors_(std::move(tensors)) {
  const std::string header = encode_header(tensors_, metadata, source_);
  std::array<char, 8> length{};
  for (size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<char>(header.size() >> (8 * i));
  file_.write(length.data(), length.size());
  file_.write(header);
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (next_ < tensors_.size() && done_ == bytes_of(tensors_[next_])) {
    ++next_;
    done_ = 0;
  }
}

void SafetensorsWriter::append(const void* data, size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    check(next_ < tensors_.size(), "{}: {} bytes after the last tensor, want none", source_, bytes);
    // In pieces, since the file's buffer takes whole what it is given.
    constexpr size_t kPiece = size_t{1} << 20;
    const size_t n = std::min({bytes, bytes_of(tensors_[next_]) - done_, kPiece});
    file_.write(from, n);
    from += n;
    bytes -= n;
    done_ += n;
    skip_complete();
  }
}

void SafetensorsWriter::append_converted(const Tensor& rows, DType dtype) {
  if (rows.dtype() == dtype) return append(rows.raw(), rows.bytes());
  const bool narrow = rows.dtype() == DType::kF32 && dtype == DType::kBF16;
  const bool widen = rows.dtype() == DType::kBF16 && dtype == DType::kF32;
  check(narrow || widen, "{}: tensor {} was declared {}, got {}", source_,
        quote(tensors_[next_].name), to_string(dtype), to_string(rows.dtype()));
  constexpr size_t kBlock = 4096;
  const auto count = static_cast<size_t>(rows.count());
  std::array<BF16, kBlock> narrowed;
  std::array<float, kBlock> widened;
  for (size_t i = 0; i < count; i += kBlock) {
    const size_t n = std::min(kBlock, count - i);
    if (narrow) {
      std::transform(rows.f32() + i, rows.f32() + i + n, narrowed.begin(), to_bf16);
      append(narrowed.data(), n * sizeof(BF16));
    } else {
      const BF16* from = rows.data<BF16>() + i;
      std::transform(from, from + n, widened.begin(), [](BF16 x) { return to_float(x); });
      append(widened.data(), n * sizeof(float));
    }
  }
}

void SafetensorsWriter::write(const Tensor& tensor) {
  if (tensor.count() == 0) return;  // skipped already: it has no bytes
  check(next_ < tensors_.size() && done_ == 0 && tensor.shape() == tensors_[next_].shape,
        "{}: got a tensor of shape {}, want {}", source_, to_string(tensor.shape()),
        next_ == tensors_.size() ? std::string("no more")
                                 : fmt::format("{} of shape {}", quote(tensors_[next_].name),
                                               to_string(tensors_[next_].shape)));
  check(tensor.device() == Device{}, "{}: tensor {} is not in host memory", source_,
        quote(tensors_[next_].name));
  const DType dtype = tensors_[next_].dtype;
  if (tensor.contiguous()) return append_converted(tensor, dtype);
  for (int64_t row = 0; row < tensor.rows(); ++row) {
    append_converted(tensor.slice_rows(row, row + 1), dtype);
  }
}

void SafetensorsWriter::commit() {
  check(next_ == tensors_.size(), "{}: tensor {} has {} bytes so far, want {}", source_,
        next_ == tensors_.size() ? "" : quote(tensors_[next_].name), done_,
        next_ == tensors_.size() ? 0 : bytes_of(tensors_[next_]));
  file_.commit();
}

void save_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsDeclaration> declarations;
  for (const auto& [name, tensor] : tensors) {
    declarations.push_back({name, tensor.shape(), tensor.dtype()});
  }
  SafetensorsWriter writer(path, std::move(declarations), metadata);
  for (const auto& [name, tensor] : tensors) writer.write(tensor);
  writer.commit();
}

}  // namespace braid
