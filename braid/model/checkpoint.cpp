#include "braid/model/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "braid/core/error.h"
#include "braid/model/families/family.h"
#include "braid/model/json.h"
#include "braid/model/stack_spec.h"

namespace braid {

// `family` is null for native names.
struct Checkpoint::Names {
  const Family* family = nullptr;
  WeightMap map;
  std::set<std::string, std::less<>> used;

  std::vector<WeightPart> parts(std::string_view name) const {
    if (family == nullptr) return {{.name = std::string(name)}};
    const auto it = map.find(name);
    return it == map.end() ? std::vector<WeightPart>{} : it->second;
  }
};

Checkpoint::Checkpoint() : names_(std::make_unique<Names>()) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::filesystem::path& dir,
                            std::span<const std::string_view> known) {
  std::error_code error;
  check(std::filesystem::is_directory(dir, error), ErrorKind::kIo,
        "{}: not a directory, want one with config.json and model.safetensors", dir.string());
  Checkpoint checkpoint;
  checkpoint.directory_ = dir;
  std::optional<ModelConfig> inferred;
  if (!std::filesystem::exists(dir / "config.json", error) &&
      std::filesystem::exists(dir / "model.safetensors", error)) {
    checkpoint.file_ = SafetensorsFile::open(dir);
    inferred = infer_config(checkpoint.file_);
  }
  if (inferred) {
    checkpoint.config_ = *inferred;
  } else {
    checkpoint.config_ = load_config(dir, known);
    checkpoint.file_ = SafetensorsFile::open(dir);
  }
  Names& names = *checkpoint.names_;
  names.family = find_family(checkpoint.config_.model_type);
  if (names.family != nullptr) names.map = names.family->weights(checkpoint.config_);
  const std::string embedding = names.parts("embedding.weight").at(0).name;
  ModelConfig& config = checkpoint.config_;
  if (checkpoint.file_.contains(embedding)) {
    const bool bf16 = checkpoint.file_.entry(embedding).dtype == DType::kBF16;
    if (!bf16) config.dtype = DType::kF32;
    if (bf16 && !config.dtype_given) config.dtype = DType::kBF16;
  }
  return checkpoint;
}

bool Checkpoint::contains(std::string_view name) const {
  const std::vector<WeightPart> parts = names_->parts(name);
  return !parts.empty() && std::ranges::all_of(parts, [&](const WeightPart& part) {
    return file_.contains(part.name) || (!part.fused.empty() && file_.contains(part.fused));
  });
}

namespace {

// A (N, K) copy of x (K, N) on the host.
Tensor transposed(const Tensor& x) {
  const auto copy = [&]<class T>(const T* from) {
    const int64_t K = x.dim(0), N = x.dim(1);
    std::vector<T> to(static_cast<size_t>(K * N));
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t n = 0; n < N; ++n) to[static_cast<size_t>(n * K + k)] = from[k * N + n];
    }
    return to;
  };
  const Shape shape{x.dim(1), x.dim(0)};
  if (x.dtype() == DType::kF32) return host_tensor(copy(x.f32()), shape);
  auto bits =
      std::make_shared<VectorStorage<uint16_t>>(copy(static_cast<const uint16_t*>(x.raw())));
  return Tensor(std::move(bits), 0, shape, x.dtype(), shape[1]);
}

bool same_but_for_ones(const Shape& a, const Shape& b) {
  const auto without = [](const Shape& shape) {
    std::vector<int64_t> extents(shape.dims().begin(), shape.dims().end());
    std::erase(extents, 1);
    return extents;
  };
  return without(a) == without(b);
}

std::string scales_of(const std::string& name) { return name + "_scale_inv"; }

// A tensor of the file in this shape; one in fp8 times its scales, in bfloat16.
Tensor stored_tensor(const SafetensorsFile& file, const std::string& name, const Shape& shape,
                     const ScaleBlock& block) {
  const Tensor stored = file.tensor(name, shape);
  if (!file.entry(name).fp8_e4m3) return stored;
  const Shape wanted = block.scales_of(shape);
  check(wanted.count() > 0 || shape.count() == 0, ErrorKind::kFormat,
        "{}: tensor {} of shape {} is fp8, want a matrix and a config with weight_block_size",
        file.path().string(), quote(name), to_string(shape));
  const Tensor scales = file.tensor(scales_of(name), wanted);
  check(scales.dtype() == DType::kF32, ErrorKind::kFormat, "{}: tensor {} is {}, want f32",
        file.path().string(), quote(scales_of(name)), to_string(scales.dtype()));
  return dequantise_fp8(stored, scales, block);
}

// The tensor of one part in the shape that the parameter has; `shape` says which.
Tensor part_of(const SafetensorsFile& file, const WeightPart& part, const Shape& shape,
               const ScaleBlock& block) {
  if (part.transposed) {
    return transposed(stored_tensor(file, part.name, {shape[1], shape[0]}, block));
  }
  Shape stored = part.squeeze ? Shape{shape[0], 1, shape[1]} : shape;
  const Shape& found = file.entry(part.name).shape;
  if (part.flat && same_but_for_ones(found, shape)) stored = found;
  return stored_tensor(file, part.name, stored, block).reshape(shape);
}

// The wanted rows (`shape` in all) of a tensor that has others between them, run by run.
std::vector<Tensor> runs_of(const SafetensorsFile& file, const WeightPart& part, Shape shape,
                            const ScaleBlock& block) {
  const RowRuns& runs = part.runs;
  const int64_t blocks = shape[0] / runs.count;
  shape.set(0, blocks * runs.block);
  const Tensor all = part_of(file, part, shape, block);
  std::vector<Tensor> slices;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * runs.block + runs.first;
    slices.push_back(all.slice_rows(begin, begin + runs.count));
  }
  return slices;
}

// 1 + x, float32 on the host.
Tensor one_plus(const Tensor& x) {
  std::vector<float> sum(static_cast<size_t>(x.count()));
  for (size_t i = 0; i < sum.size(); ++i) {
    sum[i] = 1.0f + (x.dtype() == DType::kF32 ? x.f32()[i]
                     : x.dtype() == DType::kBF16
                         ? to_float(x.data<BF16>()[i])
                         : half_to_float(static_cast<const uint16_t*>(x.raw())[i]));
  }
  return host_tensor(std::move(sum), x.shape());
}

// One row, in the shape of a part, of a tensor that holds it for several.
Tensor row_of(const SafetensorsFile& file, const WeightPart& part, const Shape& shape) {
  std::vector<int64_t> extents(shape.dims().begin(), shape.dims().end());
  const int64_t least = part.fused_rows > 0 ? part.fused_rows : part.fused_row + 1;
  const Shape& found = file.entry(part.fused).shape;
  const bool enough =
      found.rank() > 0 && (part.fused_rows > 0 ? found[0] == least : found[0] >= least);
  extents.insert(extents.begin(), enough ? found[0] : least);
  const Tensor all = file.tensor(part.fused, Shape(extents));
  return all.slice_rows(part.fused_row, part.fused_row + 1).reshape(shape);
}

}  // namespace

std::vector<Tensor> Checkpoint::sources(std::string_view name, const Shape& wanted) const {
  const std::vector<WeightPart> parts = names_->parts(name);
  check(!parts.empty(), ErrorKind::kFormat, "{}: {} checkpoints have no parameter {}",
        directory_.string(), config_.model_type, quote(name));
  std::vector<Tensor> tensors;
  int64_t rows = 0;
  for (const WeightPart& part : parts) {
    const bool fused =
        !file_.contains(part.name) && !part.fused.empty() && file_.contains(part.fused);
    check(fused || file_.contains(part.name), ErrorKind::kFormat,
          "{}: has no tensor {}, want {} of {}", file_.path().string(),
          quote(part.name.empty() ? part.fused : part.name), to_string(wanted), name);
    const std::string& stored = fused ? part.fused : part.name;
    const SafetensorsEntry& entry = file_.entry(stored);
    Shape shape = wanted;  // what this part should have, in the file's rank
    if (parts.size() > 1) shape.set(0, part.rows > 0 ? part.rows : entry.shape[0]);
    const bool floating = entry.dtype == DType::kF32 || entry.dtype == DType::kBF16 ||
                          entry.dtype == DType::kF16 || (entry.fp8_e4m3 && !fused);
    check(floating, ErrorKind::kFormat, "{}: tensor {} is {}, want f32, bf16 or f16",
          file_.path().string(), quote(stored), to_string(entry.dtype));
    if (fused) {
      tensors.push_back(row_of(file_, part, shape));
    } else if (part.runs.block > 0) {
      for (Tensor& run : runs_of(file_, part, shape, config_.fp8_block)) {
        tensors.push_back(std::move(run));
      }
    } else if (part.add_one) {
      tensors.push_back(one_plus(part_of(file_, part, shape, config_.fp8_block)));
    } else {
      tensors.push_back(part_of(file_, part, shape, config_.fp8_block));
    }
    if (entry.fp8_e4m3) names_->used.insert(scales_of(stored));
    rows += shape.rank() == 0 ? 1 : shape[0];
    names_->used.insert(stored);
  }
  check(wanted.rank() == 0 || rows == wanted[0], ErrorKind::kFormat,
        "{}: the tensors of {} have {} rows, want {}", file_.path().string(), name, rows,
        wanted[0]);
  return tensors;
}

void Checkpoint::expect_all_used() const {
  std::string head;
  if (config_.tied && names_->family != nullptr) head = names_->parts("head.weight").at(0).name;
  for (const std::string& name : file_.names()) {
    if (names_->used.contains(name) || name == head) continue;
    if (names_->family != nullptr && names_->family->ignorable(name)) continue;
    if (names_->family != nullptr && names_->family->beyond != nullptr &&
        names_->family->beyond(name, config_)) {
      continue;
    }
    fail(ErrorKind::kFormat, "{}: tensor {} of shape {} is not part of a {} model with this config",
         file_.path().string(), quote(name), to_string(file_.entry(name).shape),
         config_.model_type);
  }
}

namespace {

// A 64-bit hash by multiply and shift (the finaliser of SplitMix64); not against adversaries.
class Hasher {
 public:
  void word(uint64_t value) {
    state_ = (state_ ^ value) + 0x9e3779b97f4a7c15u;
    state_ = (state_ ^ (state_ >> 30)) * 0xbf58476d1ce4e5b9u;
    state_ = (state_ ^ (state_ >> 27)) * 0x94d049bb133111ebu;
    state_ ^= state_ >> 31;
  }
  void bytes(const void* data, size_t size) {
    word(size);
    const auto* from = static_cast<const char*>(data);
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
      uint64_t value = 0;
      std::memcpy(&value, from + i, std::min(sizeof value, size - i));
      word(value);
    }
  }
  void text(std::string_view text) { bytes(text.data(), text.size()); }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0;
};

}  // namespace

uint64_t Checkpoint::fingerprint() const {
  Hasher hash;
  hash.text(config_.model_type);
  hash.text(print_stack(config_.sublayers));
  for (const int64_t size :
       {config_.vocab, config_.width, int64_t{config_.tied}, static_cast<int64_t>(config_.norm),
        static_cast<int64_t>(config_.dtype)}) {
    hash.word(static_cast<uint64_t>(size));
  }
  if (config_.embedding_norm) hash.text("embedding_norm");
  for (const double scale : {config_.norm_eps, config_.embedding_scale, config_.logit_scale}) {
    hash.bytes(&scale, sizeof scale);
  }
  constexpr size_t kBlock = 256, kBlocks = 16;
  for (const std::string& name : file_.names()) {
    const Tensor tensor = file_.tensor(name);
    hash.text(name);
    hash.word(static_cast<uint64_t>(tensor.dtype()));
    for (const int64_t extent : tensor.shape().dims()) hash.word(static_cast<uint64_t>(extent));
    const auto* data = static_cast<const char*>(tensor.raw());
    const size_t bytes = tensor.bytes();
    if (bytes <= kBlock * kBlocks) {
      hash.bytes(data, bytes);
      continue;
    }
    for (size_t i = 0; i < kBlocks; ++i) {  // the first and the last bytes are among them
      hash.bytes(data + (bytes - kBlock) / (kBlocks - 1) * i, kBlock);
    }
    hash.bytes(data + bytes - kBlock, kBlock);
  }
  return hash.value();
}

}  // namespace braid
