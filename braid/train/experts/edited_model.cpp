#include "braid/train/experts/edited_model.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "braid/core/error.h"

namespace braid {
namespace {

// x (E, ...) without row j and with row i of other values.
Tensor fold(const Tensor& x, int64_t i, int64_t j, std::span<const float> row) {
  const int64_t width = x.row_count();
  std::vector<float> values(x.f32(), x.f32() + x.count());
  std::copy(row.begin(), row.end(), values.begin() + i * width);
  values.erase(values.begin() + j * width, values.begin() + (j + 1) * width);
  Shape shape = x.shape();
  shape.set(0, shape[0] - 1);
  return host_tensor(std::move(values), shape);
}

// The name of expert `to`'s parameter from that of expert e's.
std::string renamed(const ExpertLayer& layer, const std::string& name, int64_t e, int64_t to) {
  const std::string from = fmt::format("{}experts.{}.", layer.prefix, e);
  assert(name.starts_with(from));
  return fmt::format("{}experts.{}.{}", layer.prefix, to, name.substr(from.size()));
}

// "8/2" -> "7/2"; whatever else the sublayer is told stays.
void drop_expert(SublayerSpec& spec, int64_t experts, int64_t top_k) {
  for (SpecArg& arg : spec.args) {
    if (!arg.key.empty() && arg.key != "experts") continue;
    arg.value = fmt::format("{}/{}", experts - 1, top_k);
    return;
  }
}

// The rows of all parts as one tensor, float32 where they are several.
Tensor joined(const std::vector<Tensor>& parts, const Shape& shape) {
  if (parts.size() == 1 && parts[0].contiguous() && parts[0].dtype() != DType::kF16) {
    return parts[0].shape() == shape ? parts[0] : parts[0].reshape(shape);
  }
  std::vector<float> values;
  for (const Tensor& part : parts) {
    for (int64_t i = 0; i < part.rows(); ++i) {
      for (int64_t k = i * part.row_stride(); k < i * part.row_stride() + part.row_count(); ++k) {
        values.push_back(part.dtype() == DType::kF32 ? part.f32()[k]
                         : part.dtype() == DType::kBF16
                             ? to_float(part.data<BF16>()[k])
                             : half_to_float(static_cast<const uint16_t*>(part.raw())[k]));
      }
    }
  }
  return host_tensor(std::move(values), shape);
}

}  // namespace

EditedModel::EditedModel(const Checkpoint& checkpoint)
    : checkpoint_(&checkpoint), config_(checkpoint.config()) {}

std::vector<Tensor> EditedModel::sources(const std::string& name, const Shape& shape) const {
  const auto found = changed_.find(name);
  if (found == changed_.end()) return checkpoint_->sources(name, shape);
  if (found->second.tensor.defined()) return {found->second.tensor};
  return checkpoint_->sources(found->second.name, shape);
}

std::unique_ptr<Stack> EditedModel::build(Context& ctx) const {
  auto stack = std::make_unique<Stack>(config_);
  stack->load(ctx,
              [this](const std::string& name, const Shape& shape) { return sources(name, shape); });
  return stack;
}

void EditedModel::merge(const ExpertLayer& layer, const ExpertPair& pair,
                        const MergedExpert& merged, const RouterValues& router) {
  const int64_t E = layer.experts();
  for (const std::vector<Parameter*>* matrices : {&layer.in, &layer.out}) {
    const auto name = [&](int64_t e) -> const std::string& {
      return (*matrices)[static_cast<size_t>(e)]->name;
    };
    for (int64_t e = pair.j + 1; e < E; ++e) {
      const auto found = changed_.find(name(e));
      Entry entry = found == changed_.end() ? Entry{.name = name(e), .tensor = {}} : found->second;
      changed_[renamed(layer, name(e), e, e - 1)] = std::move(entry);
    }
    changed_.erase(name(E - 1));
    const bool in = matrices == &layer.in;
    changed_[name(pair.i)] = {.name = {}, .tensor = in ? merged.matrices.in : merged.matrices.out};
  }
  changed_[layer.router->name] = {.name = {},
                                  .tensor = fold(router.weight, pair.i, pair.j, merged.row)};
  if (layer.bias != nullptr) {
    changed_[layer.bias->name] = {.name = {},
                                  .tensor = fold(router.bias, pair.i, pair.j, {&merged.bias, 1})};
  }
  drop_expert(config_.sublayers[layer.sublayer].branches[layer.branch], E, layer.routing.top_k);
}

void EditedModel::save(const std::filesystem::path& dir) const {
  std::vector<NamedTensor> tensors;
  const Stack names(config_);
  std::set<std::string> exact;
  for (const auto& [name, parameter] : names.parameters()) {
    if (parameter->full_precision) exact.insert(name);
    tensors.emplace_back(name, joined(sources(name, parameter->shape), parameter->shape));
  }
  const std::filesystem::path tokenizer = checkpoint_->directory() / "tokenizer.json";
  save_checkpoint(dir, {.config = &config_,
                        .tensors = tensors,
                        .dtype = config_.dtype,
                        .exact = std::move(exact),
                        .tokenizer = std::filesystem::exists(tokenizer) ? tokenizer : ""});
}

}  // namespace braid
