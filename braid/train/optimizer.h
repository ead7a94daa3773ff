#pragma once

#include <cstdint>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/tape.h"
#include "braid/model/safetensors.h"
#include "braid/model/stack.h"

namespace braid {

/// Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101). Decay applies to the
/// parameters that ask for it: matrices, never norms, biases, decays of a recurrence or the
/// embedding.
struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;  // largest norm of the whole gradient; 0: no limit
};

/// The moments of every parameter of a stack, the accumulators of their gradients, and the step
/// that changes the float32 masters in place.
///
/// Thread safety: one thread at a time.
class Optimizer {
 public:
  /// `stack` must be trainable and outlive the optimiser. Moments start at zero.
  Optimizer(Context& ctx, Stack& stack, const OptimizerOptions& options);

  /// Where a Tape adds the parameters' gradients.
  Tape::Sinks* sinks() { return &sinks_; }
  void zero_gradients(Context& ctx);

  /// One update, number `step` from 0, with the gradients gathered times `scale`; packs the
  /// matrices again. Returns the norm of the scaled gradient before clipping. If that is not finite
  /// nothing is changed.
  double step(Context& ctx, int64_t step, double learning_rate, double scale);

  /// The moments of a parameter of the stack, to be read or written between steps; absent where it
  /// is frozen. Handles to the optimiser's own.
  struct Moments {
    Tensor m, v;  // as the parameter, float32
  };
  Moments moments(const Parameter& parameter) const;

  /// Master weights and moments on the host, by name, for a checkpoint.
  std::vector<NamedTensor> tensors(Context& ctx) const;
  /// Takes them back. Throws Error(kFormat) where one is missing or has another shape.
  void load(Context& ctx, const SafetensorsFile& file);

 private:
  struct Slot {
    Tensor m, v;      // as the parameter, float32
    Tensor gradient;  // the sink

    bool trained() const { return gradient.defined(); }  // false for a frozen parameter
  };
  Stack& stack_;
  OptimizerOptions options_;
  std::vector<Slot> slots_;  // by parameter
  Tape::Sinks sinks_;
};

}  // namespace braid
