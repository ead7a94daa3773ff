#include "braid/nn/parameter.h"

#include <algorithm>
#include <cmath>

namespace braid {
namespace {

// Checks that every value of a float tensor is finite, and widens it to float32.
void copy_finite(const Tensor& source, const std::string& name, float* to) {
  const int64_t count = source.count();
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    float v = 0;
    switch (source.dtype()) {
      case DType::kF32:
        v = source.f32()[i];
        break;
      case DType::kBF16:
        v = to_float(source.data<BF16>()[i]);
        break;
      case DType::kF16:
        v = half_to_float(static_cast<const uint16_t*>(source.raw())[i]);
        break;
      default:
        fail(ErrorKind::kFormat, "parameter {}: has dtype {}, want f32, bf16 or f16", name,
             to_string(source.dtype()));
    }
    finite &= std::isfinite(v);
    to[i] = v;
  }
  check(finite, ErrorKind::kFormat, "parameter {}: holds a NaN or an infinity, want finite values",
        name);
}

}  // namespace

Initializer init_constant(float value) {
  return [value](std::span<float> values, const Rng&) {
    std::fill(values.begin(), values.end(), value);
  };
}

Initializer init_normal(float stddev) {
  return [stddev](std::span<float> values, const Rng& rng) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = stddev * rng.normal(i);
  };
}

Initializer init_uniform(float low, float high) {
  return [low, high](std::span<float> values, const Rng& rng) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = low + (high - low) * rng.uniform(i);
  };
}

void load_parameter(Context& ctx, Parameter& parameter, const std::vector<Tensor>& sources,
                    const ParameterOptions& options) {
  const DType packed_dtype = dtype_of(parameter, options.matrix_dtype);
  if (parameter.matrix && !options.trainable) {
    parameter.weight = Weight::concat_rows(
        ctx, sources, {.packed_dtype = packed_dtype, .both_ways = parameter.both_ways});
    check(parameter.weight.finite(), ErrorKind::kFormat,
          "parameter {}: holds a NaN or an infinity, want finite values", parameter.name);
    return;
  }
  std::vector<float> values(static_cast<size_t>(parameter.shape.count()));
  float* to = values.data();
  for (const Tensor& source : sources) {
    copy_finite(source, parameter.name, to);
    to += source.count();
  }
  Tensor value = ctx.to_device(host_tensor(std::move(values), parameter.shape));
  value.set_grad_id(parameter.value.grad_id());
  parameter.value = value;
  if (parameter.matrix) {
    parameter.weight = Weight::make(ctx, value, {.packed_dtype = packed_dtype, .trainable = true});
    parameter.value = parameter.weight.plain();  // one master, which the weight packs again
  }
}

void initialize_parameter(Context& ctx, Parameter& parameter, const Rng& rng,
                          const ParameterOptions& options) {
  std::vector<float> values(static_cast<size_t>(parameter.shape.count()));
  parameter.init(values, rng);
  load_parameter(ctx, parameter, {host_tensor(std::move(values), parameter.shape)}, options);
}

}  // namespace braid
