#include "braid/train/optimizer.h"

#include <cmath>

#include "braid/core/error.h"
#include "braid/ops/adamw/adamw.h"

namespace braid {

Optimizer::Optimizer(Context& ctx, Stack& stack, const OptimizerOptions& options)
    : stack_(stack), options_(options) {
  for (const auto& [name, parameter] : stack.parameters()) {
    Slot& slot = slots_.emplace_back();
    if (parameter->frozen) continue;
    const Tensor& value = parameter->value;
    check(value.defined() && Tape::tracks(value),
          "optimizer: parameter {} cannot be trained, want a trainable, initialised stack", name);
    slot.m = ctx.zeros(value.shape());
    slot.v = ctx.zeros(value.shape());
    slot.gradient = ctx.zeros(value.shape());
    sinks_[value.grad_id()] = slot.gradient;
  }
}

void Optimizer::zero_gradients(Context& ctx) {
  for (const Slot& slot : slots_) {
    if (slot.trained()) ctx.api().fill_bytes(slot.gradient.raw(), 0, slot.gradient.bytes());
  }
}

double Optimizer::step(Context& ctx, int64_t step, double learning_rate, double scale) {
  std::vector<Tensor> gradients;
  for (const Slot& slot : slots_) {
    if (slot.trained()) gradients.push_back(slot.gradient);
  }
  const double norm = scale * global_norm(ctx, gradients);
  if (!std::isfinite(norm)) return norm;
  AdamWOptions update{.lr = static_cast<float>(learning_rate),
                      .beta1 = static_cast<float>(options_.beta1),
                      .beta2 = static_cast<float>(options_.beta2),
                      .eps = static_cast<float>(options_.epsilon),
                      .step = step + 1};
  update.gradient_scale = static_cast<float>(scale * clip_factor(norm, options_.clip));
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].trained()) continue;
    const Parameter& parameter = *stack_.parameters()[i].parameter;
    update.weight_decay = parameter.decay ? static_cast<float>(options_.weight_decay) : 0.0f;
    adamw(ctx, parameter.value, slots_[i].gradient, slots_[i].m, slots_[i].v, update);
  }
  stack_.repack(ctx);
  return norm;
}

Optimizer::Moments Optimizer::moments(const Parameter& parameter) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (stack_.parameters()[i].parameter == &parameter) return {slots_[i].m, slots_[i].v};
  }
  fail(ErrorKind::kUsage, "optimizer: {} is no parameter of the stack", parameter.name);
}

std::vector<NamedTensor> Optimizer::tensors(Context& ctx) const {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const auto& [name, parameter] = stack_.parameters()[i];
    tensors.emplace_back("weight/" + name, ctx.to_host(parameter->value));
    if (!slots_[i].trained()) continue;
    tensors.emplace_back("adamw.m/" + name, ctx.to_host(slots_[i].m));
    tensors.emplace_back("adamw.v/" + name, ctx.to_host(slots_[i].v));
  }
  return tensors;
}

void Optimizer::load(Context& ctx, const SafetensorsFile& file) {
  const auto take = [&](const std::string& name, const Tensor& to) {
    const Tensor from = file.tensor(name, to.shape());
    check(from.dtype() == DType::kF32, ErrorKind::kFormat, "{}: {} is {}, want f32",
          file.path().string(), name, to_string(from.dtype()));
    ctx.api().copy_from_host(to.raw(), from.raw(), from.bytes());
  };
  for (size_t i = 0; i < slots_.size(); ++i) {
    const auto& [name, parameter] = stack_.parameters()[i];
    take("weight/" + name, parameter->value);
    if (!slots_[i].trained()) continue;
    take("adamw.m/" + name, slots_[i].m);
    take("adamw.v/" + name, slots_[i].v);
  }
  stack_.repack(ctx);
}

}  // namespace braid
