// The session file: safetensors with the tensors
//   logits                         (V) float32, absent before the first token
//   sublayers.I.SLOT.BLOCK         one per block of a state slot, pages first to last
// and the metadata format, version, fingerprint, position, hash, adaptation (what learns while
// reading; absent where nothing does), seal. Where no slot grows, nothing
// but the seal tells a position that is not the state's own.

#include <charconv>

#include "braid/infer/session.h"
#include "braid/model/safetensors.h"

namespace braid {
namespace {

constexpr std::string_view kFormat = "braid-session";
constexpr uint64_t kVersion = 1;

std::string block_name(size_t sublayer, const SlotSpec& slot, size_t slot_index, size_t block) {
  return fmt::format("sublayers.{}.{}.{}.{}", sublayer, slot_index, slot.name, block);
}

uint64_t metadata_number(const SafetensorsFile& file, const std::string& key, int base) {
  const auto found = file.metadata().find(key);
  check(found != file.metadata().end(), ErrorKind::kFormat,
        "{}: session metadata has no {}, want one", file.path().string(), key);
  const std::string& text = found->second;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  check(error == std::errc{} && end == text.data() + text.size(), ErrorKind::kFormat,
        "{}: session metadata {} is not a number", file.path().string(), key);
  return value;
}

// FNV-1a over the numbers that say which state this is.
uint64_t seal(uint64_t fingerprint, uint64_t position, uint64_t hash) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const uint64_t number : {kVersion, fingerprint, position, hash}) {
    for (int shift = 0; shift < 64; shift += 8) {
      value = (value ^ ((number >> shift) & 0xffu)) * 0x100000001b3u;
    }
  }
  return value;
}

Tensor read_block(const SafetensorsFile& file, const std::string& name, const SlotSpec& slot) {
  Tensor block = file.tensor(
      name, slot.kind == SlotKind::kFixed ? slot.shape : Shape{kPageTokens * slot.shape.count()});
  check(block.dtype() == slot.dtype, ErrorKind::kFormat, "{}: tensor {} is {}, want {}",
        file.path().string(), name, to_string(block.dtype()), to_string(slot.dtype));
  return block;
}

}  // namespace

void Session::save(const Context& ctx, const std::filesystem::path& path) const {
  std::vector<NamedTensor> tensors;
  if (!logits_.empty()) {
    tensors.emplace_back("logits", host_tensor(logits_, {static_cast<int64_t>(logits_.size())}));
  }
  const auto& specs = state_.specs();
  for (size_t i = 0; i < specs.size(); ++i) {
    for (size_t j = 0; j < specs[i].size(); ++j) {
      const std::vector<Tensor> blocks = state_.blocks(i, j);
      for (size_t b = 0; b < blocks.size(); ++b) {
        tensors.emplace_back(block_name(i, specs[i][j], j, b), ctx.to_host(blocks[b]));
      }
    }
  }
  const auto position_number = static_cast<uint64_t>(position());
  std::map<std::string, std::string> metadata = {
      {"format", std::string(kFormat)},
      {"version", std::to_string(kVersion)},
      {"fingerprint", fmt::format("{:016x}", fingerprint_)},
      {"position", std::to_string(position_number)},
      {"hash", fmt::format("{:016x}", hash_)},
      {"seal", fmt::format("{:016x}", seal(fingerprint_, position_number, hash_))}};
  if (options_.adaptation != nullptr) metadata["adaptation"] = options_.adaptation->identity();
  save_safetensors(path, tensors, metadata);
}

void Session::load(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::string name = path.string();
  const auto format = file.metadata().find("format");
  check(format != file.metadata().end() && format->second == kFormat, ErrorKind::kFormat,
        "{}: not a session file, want metadata format {}", name, kFormat);
  const uint64_t version = metadata_number(file, "version", 10);
  check(version == kVersion, ErrorKind::kFormat, "{}: session format version {}, want {}", name,
        version, kVersion);
  const uint64_t fingerprint = metadata_number(file, "fingerprint", 16);
  check(fingerprint == fingerprint_, ErrorKind::kFormat,
        "{}: session of the model {:016x}, want {:016x}", name, fingerprint, fingerprint_);
  const std::string now = options_.adaptation != nullptr ? options_.adaptation->identity() : "none";
  const auto saved = file.metadata().find("adaptation");
  const std::string was = saved != file.metadata().end() ? saved->second : "none";
  check(was == now, ErrorKind::kFormat, "{}: session with the adaptation {}, want {}", name, was,
        now);
  const uint64_t position = metadata_number(file, "position", 10);
  constexpr uint64_t kMaxPosition = uint64_t{1} << 48;
  check(position <= kMaxPosition, ErrorKind::kFormat, "{}: session position {}, want at most {}",
        name, position, kMaxPosition);
  const uint64_t hash = metadata_number(file, "hash", 16);

  // Everything is read and checked before anything of this session changes.
  State state = state_;
  const auto& specs = state.specs();
  const auto tensors = static_cast<int64_t>(file.names().size());
  int64_t used = position > 0 ? 1 : 0;  // the logits
  std::vector<std::vector<std::vector<Tensor>>> blocks(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    blocks[i].resize(specs[i].size());
    for (size_t j = 0; j < specs[i].size(); ++j) {
      const SlotSpec& slot = specs[i][j];
      const int64_t wanted = state.blocks_wanted(i, j, static_cast<int64_t>(position));
      used += wanted;
      check(wanted <= tensors, ErrorKind::kFormat,
            "{}: {} tensors, want {} for slot {} of sublayer {}", name, tensors, wanted, slot.name,
            i);
      for (int64_t b = 0; b < wanted; ++b) {
        const std::string block = block_name(i, slot, j, static_cast<size_t>(b));
        blocks[i][j].push_back(read_block(file, block, slot));
      }
    }
  }
  check(used == tensors, ErrorKind::kFormat, "{}: {} tensors, want {} at position {}", name,
        tensors, used, position);
  std::vector<float> logits;
  if (position > 0) {
    const Tensor stored = file.tensor("logits", {stack_->config().vocab});
    check(stored.dtype() == DType::kF32, ErrorKind::kFormat, "{}: logits are {}, want f32", name,
          to_string(stored.dtype()));
    logits.assign(stored.f32(), stored.f32() + stored.count());
  }
  check(metadata_number(file, "seal", 16) == seal(fingerprint, position, hash), ErrorKind::kFormat,
        "{}: session position {} and hash {:016x} are not those it was saved with", name, position,
        hash);
  state.load(static_cast<int64_t>(position), blocks);
  state_ = std::move(state);
  logits_ = std::move(logits);
  hash_ = hash;
  recent_.clear();
  marks_.clear();
  if (options_.rollback_tokens > 0) marks_.push_back({state_.mark(), hash_, logits_});
}

}  // namespace braid
