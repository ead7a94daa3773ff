#include "braid/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "braid/core/error.h"
#include "braid/model/json.h"

namespace braid {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr size_t kMaxNameBytes = 4096;
constexpr std::string_view kFp8 = "F8_E4M3";
constexpr std::string_view kDTypes = "F64, F32, F16, BF16, F8_E4M3, I64, I32, U8 or BOOL";

bool dtype_from_name(std::string_view name, DType* dtype) {
  static constexpr std::pair<std::string_view, DType> kTable[] = {
      {"F64", DType::kF64},   {"F32", DType::kF32}, {"F16", DType::kF16},
      {"BF16", DType::kBF16}, {"I64", DType::kI64}, {"I32", DType::kI32},
      {"U8", DType::kU8},     {"BOOL", DType::kU8}, {kFp8, DType::kU8}};
  for (const auto& [text, value] : kTable) {
    if (text != name) continue;
    *dtype = value;
    return true;
  }
  return false;
}

bool add_checked(uint64_t a, uint64_t b, uint64_t* sum) {
  return !__builtin_add_overflow(a, b, sum);
}

// The value as an unsigned integer; false for anything else.
bool to_unsigned(const json& value, uint64_t* out) {
  if (!value.is_number_integer() || (!value.is_number_unsigned() && value.get<int64_t>() < 0)) {
    return false;
  }
  *out = value.get<uint64_t>();
  return true;
}

Shape parse_shape(const JsonObject& object) {
  const std::string wanted =
      fmt::format("a list of at most {} sizes from 0 to 2^48", Shape::kMaxRank);
  const json& list = object.at("shape", wanted);
  if (!list.is_array() || list.size() > static_cast<size_t>(Shape::kMaxRank)) {
    object.refuse("shape", wanted);
  }
  std::vector<int64_t> extents;
  for (const json& item : list) {
    uint64_t extent = 0;
    check(to_unsigned(item, &extent) && extent <= (uint64_t{1} << 48), ErrorKind::kFormat,
          "{}: shape[{}] is {}, want a size from 0 to 2^48", object.source(), extents.size(),
          describe(item));
    extents.push_back(static_cast<int64_t>(extent));
  }
  return Shape(extents);
}

SafetensorsEntry parse_entry(const std::string& name, const json& value, std::string_view source,
                             uint64_t data_begin) {
  check(!name.empty() && name.size() <= kMaxNameBytes, ErrorKind::kFormat,
        "{}: tensor {} has a name of {} bytes, want 1 to {}", source, quote(name), name.size(),
        kMaxNameBytes);
  const JsonObject object(value, fmt::format("{}: tensor {}", source, quote(name)));
  SafetensorsEntry entry{.name = name, .shape = parse_shape(object)};
  if (!dtype_from_name(object.text("dtype"), &entry.dtype)) {
    object.refuse("dtype", kDTypes);
  }
  entry.fp8_e4m3 = object.text("dtype") == kFp8;
  check(value.size() == 3, ErrorKind::kFormat,
        "{}: has {} keys, want dtype, shape and data_offsets", object.source(), value.size());

  const json& offsets = object.at("data_offsets", "two offsets");
  uint64_t begin = 0, end = 0;
  if (!offsets.is_array() || offsets.size() != 2 || !to_unsigned(offsets[0], &begin) ||
      !to_unsigned(offsets[1], &end)) {
    object.refuse("data_offsets", "two offsets");
  }
  check(begin <= end, ErrorKind::kFormat, "{}: data_offsets are [{}, {}], want begin <= end",
        object.source(), begin, end);

  uint64_t bytes = size_of(entry.dtype);
  for (const int64_t extent : entry.shape.dims()) {
    check(!__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes) &&
              bytes <= (uint64_t{1} << 62),
          ErrorKind::kFormat, "{}: shape {} is larger than can be addressed", object.source(),
          to_string(entry.shape));
  }
  check(bytes == end - begin, ErrorKind::kFormat,
        "{}: data_offsets [{}, {}] hold {} bytes, shape {} of {} wants {}", object.source(), begin,
        end, end - begin, to_string(entry.shape), to_string(entry.dtype), bytes);
  uint64_t offset = 0;
  check(add_checked(data_begin, begin, &offset), ErrorKind::kFormat,
        "{}: data_offsets [{}, {}] are out of range", object.source(), begin, end);
  entry.offset = offset;
  entry.bytes = bytes;
  return entry;
}

// The tensors must tile the data: no overlap, no gap, nothing left over.
void check_tiling(const SafetensorsHeader& header, uint64_t data_begin, uint64_t file_bytes,
                  std::string_view source) {
  uint64_t at = data_begin;
  for (const SafetensorsEntry& entry : header.entries) {
    check(entry.offset == at, ErrorKind::kFormat,
          "{}: tensor {} begins at byte {} of the data, want {} ({})", source, quote(entry.name),
          entry.offset - data_begin, at - data_begin,
          entry.offset < at ? "it overlaps another tensor" : "a gap precedes it");
    check(entry.bytes <= file_bytes - at, ErrorKind::kFormat,
          "{}: tensor {} ends at byte {} of the data, the file has only {} (is it cut short?)",
          source, quote(entry.name), entry.offset - data_begin + entry.bytes,
          file_bytes - data_begin);
    at += entry.bytes;
  }
  check(at == file_bytes, ErrorKind::kFormat,
        "{}: has {} bytes of data, its tensors want {} (bytes left over)", source,
        file_bytes - data_begin, at - data_begin);
}

uint64_t header_length(std::span<const std::byte> bytes, std::string_view source) {
  check(bytes.size() >= kLengthBytes, ErrorKind::kFormat,
        "{}: has {} bytes, want a safetensors file (at least {})", source, bytes.size(),
        kLengthBytes);
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  }
  check(length <= kMaxHeaderBytes, ErrorKind::kFormat,
        "{}: the header's length is {} bytes, want at most {} (not a safetensors file?)", source,
        length, kMaxHeaderBytes);
  check(length <= bytes.size() - kLengthBytes, ErrorKind::kFormat,
        "{}: the header's length is {} bytes, the file has {} after it (is it cut short?)", source,
        length, bytes.size() - kLengthBytes);
  return length;
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, std::string_view source) {
  const uint64_t length = header_length(bytes, source);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  check(text.starts_with('{'), ErrorKind::kFormat,
        "{}: the header begins with {}, want an object (not a safetensors file?)", source,
        quote(text.substr(0, 1)));
  const json root = parse_json(text, fmt::format("{}: header", source), {.max_depth = 8});

  SafetensorsHeader header;
  const uint64_t data_begin = kLengthBytes + length;
  for (const auto& [name, value] : root.items()) {
    if (name != "__metadata__") {
      header.entries.push_back(parse_entry(name, value, source, data_begin));
      continue;
    }
    const JsonObject metadata(value, fmt::format("{}: __metadata__", source));
    for (const auto& [key, text_value] : value.items()) {
      check(text_value.is_string(), ErrorKind::kFormat, "{}: {} is {}, want a string",
            metadata.source(), quote(key), describe(text_value));
      header.metadata[key] = text_value.get<std::string>();
    }
  }
  std::ranges::sort(header.entries, [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  check_tiling(header, data_begin, bytes.size(), source);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result;
  std::filesystem::path file = path;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    file = path / "model.safetensors";
    if (!std::filesystem::exists(file, error)) file = path / "model.safetensors.index.json";
    check(std::filesystem::exists(file, error), ErrorKind::kIo,
          "{}: holds neither model.safetensors nor model.safetensors.index.json", path.string());
  }
  result.path_ = file;
  if (file.extension() == ".json") {
    result.add_index(file);
  } else {
    result.add_file(file);
  }
  return result;
}

void SafetensorsFile::add_file(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  SafetensorsHeader header = parse_safetensors(file->bytes(), path.string());
  if (tensors_.empty()) metadata_ = std::move(header.metadata);
  for (SafetensorsEntry& entry : header.entries) {
    const auto [it, added] = tensors_.try_emplace(entry.name, Located{entry, file});
    check(added, ErrorKind::kFormat, "{}: tensor {} is also in {}, want it once", path.string(),
          quote(entry.name), it->second.file->path().string());
  }
}

void SafetensorsFile::add_index(const std::filesystem::path& path) {
  const json root = read_json(path);
  const JsonObject index(root, path.string());
  const JsonObject map = index.object("weight_map");
  std::set<std::string> shards;
  for (const auto& [name, value] : map.value().items()) {
    // A shard lies beside its index: a name that leads elsewhere is refused.
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    const bool plain = shard.ends_with(".safetensors") && shard.find('/') == std::string::npos &&
                       shard.find('\\') == std::string::npos &&
                       shard.find('\0') == std::string::npos;
    check(plain, ErrorKind::kFormat,
          "{}: tensor {} is in {}, want the name of a .safetensors file in the same directory",
          map.source(), quote(name), describe(value));
    shards.insert(shard);
  }
  for (const std::string& shard : shards) add_file(path.parent_path() / shard);

  for (const auto& [name, value] : map.value().items()) {
    const Located* found = find(name);
    const std::string shard = value.get<std::string>();
    check(found != nullptr && found->file->path().filename() == shard, ErrorKind::kFormat,
          "{}: tensor {} should be in {}, it is in {}", map.source(), quote(name), quote(shard),
          found == nullptr ? "none of the shards" : found->file->path().filename().string());
  }
  for (const auto& [name, found] : tensors_) {
    check(map.value().contains(name), ErrorKind::kFormat, "{}: tensor {} of {} is not in the index",
          map.source(), quote(name), found.file->path().filename().string());
  }
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, located] : tensors_) names.push_back(name);
  return names;
}

const SafetensorsFile::Located* SafetensorsFile::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const SafetensorsFile::Located& SafetensorsFile::located(std::string_view name) const {
  const Located* found = find(name);
  check(found != nullptr, ErrorKind::kFormat, "{}: has no tensor {}", path_.string(), quote(name));
  return *found;
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  return located(name).entry;
}

Tensor SafetensorsFile::tensor(std::string_view name) const {
  const auto& [entry, file] = located(name);
  const std::byte* data = file->bytes().data() + entry.offset;
  if (reinterpret_cast<uintptr_t>(data) % size_of(entry.dtype) == 0) {
    return file->tensor(entry.offset, entry.shape, entry.dtype);
  }
  // A header of odd length: the format allows it, typed reads do not.
  std::vector<double> aligned((entry.bytes + sizeof(double) - 1) / sizeof(double));
  if (entry.bytes > 0) std::memcpy(aligned.data(), data, entry.bytes);
  const int64_t row = entry.shape.rank() == 0 ? 1 : entry.shape.count(1);
  return Tensor(std::make_shared<VectorStorage<double>>(std::move(aligned)), 0, entry.shape,
                entry.dtype, row);
}

Tensor SafetensorsFile::tensor(std::string_view name, const Shape& wanted) const {
  const SafetensorsEntry& found = entry(name);
  check(found.shape == wanted, ErrorKind::kFormat, "{}: tensor {} has shape {}, want {}",
        path_.string(), quote(name), to_string(found.shape), to_string(wanted));
  return tensor(name);
}

}  // namespace braid
