#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/rng.h"
#include "braid/ops/linear/weight.h"

namespace braid {

/// Fills a parameter's float32 values for training from scratch.
using Initializer = std::function<void(std::span<float> values, const Rng& rng)>;

Initializer init_constant(float value);
Initializer init_normal(float stddev);
Initializer init_uniform(float low, float high);

/// A named learnable tensor of a module.
///
/// A matrix (rank 2, the right-hand side of a linear map) lives in `weight`, packed for the
/// kernels; everything else is a plain float32 `value`. In training `value` holds the float32
/// master of both.
struct Parameter {
  std::string name;  // relative to its module; the stack puts the path in front
  Shape shape;
  bool matrix = false;
  bool decay = false;      // weight decay applies
  bool both_ways = false;  // a matrix that is also multiplied by from the other side
  bool frozen = false;     // saved and loaded with the others, never trained; no gradient arrives
  bool full_precision = false;  // a matrix that stays float32 beside bfloat16 ones (a router)
  double active = 1;  // the share of tokens that read it, for counts: k / E of an expert's
  Initializer init;

  Tensor value;
  Weight weight;
};

/// How a stack holds its parameters.
struct ParameterOptions {
  DType matrix_dtype = DType::kF32;  // of the packed matrices
  bool trainable = false;            // keep float32 masters and packs for the backward pass
};

/// What a matrix is held in, or written in, where matrices are `matrix_dtype`.
inline DType dtype_of(const Parameter& parameter, DType matrix_dtype) {
  return parameter.matrix && !parameter.full_precision ? matrix_dtype : DType::kF32;
}

/// Takes the parameter's values from file tensors, which are concatenated along rows. Throws
/// Error(kFormat) where the result is not finite. Shapes have been checked.
void load_parameter(Context& ctx, Parameter& parameter, const std::vector<Tensor>& sources,
                    const ParameterOptions& options);
/// Draws the parameter's initial values from its own stream of `rng`.
void initialize_parameter(Context& ctx, Parameter& parameter, const Rng& rng,
                          const ParameterOptions& options);

}  // namespace braid
