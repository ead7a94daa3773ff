#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/sequence_batch.h"
#include "braid/model/config.h"
#include "braid/nn/modules.h"
#include "braid/nn/multipliers.h"
#include "braid/nn/state.h"
#include "braid/nn/sublayer.h"

namespace braid {

class Adaptation;
class Checkpoint;

struct StackOptions {
  bool trainable = false;
  /// Of the packed matrices. Inference takes the checkpoint's own dtype when this is not set.
  std::optional<DType> matrix_dtype;
  /// Training: keep only the residual stream between sublayers and run each again in the backward
  /// pass.
  bool recompute = false;
};

/// Sees what enters sublayer `index`: x (N, D), normed, as the branches take it.
using SublayerWatch = std::function<void(size_t index, const Tensor& x)>;

struct ForwardOptions {
  /// One state a sequence, read and advanced; empty: every sequence starts from nothing.
  std::span<State* const> states = {};
  /// Instead of `states`, for training on pieces of sequences: one a sublayer (or none, which is
  /// the zero state), slots in the order of state_specs(). `initial` is read, `last` is set, and
  /// gradients flow through both, also when sublayers are recomputed. Refused where a sublayer
  /// keeps a row a token. The batch says where each piece starts.
  std::vector<SlotTensors>* carried = nullptr;
  /// As StreamOptions; `loads` is fed once a pass, also when sublayers are recomputed.
  std::optional<Rng> noise = std::nullopt;
  ExpertLoads* loads = nullptr;
  ExpertHost* expert_host = nullptr;
  /// Learns while reading and gives the logits in place of the head; `states` then have its slots.
  const Adaptation* adaptation = nullptr;
  /// Called before each sublayer. Not under a tape.
  SublayerWatch watch = {};
  /// Rows of the packed batch whose logits are wanted, ascending; all of them when not set.
  std::optional<std::vector<int64_t>> rows;
};

/// The tensors whose rows, one after another, are the parameter of that name and shape.
using ParameterSource =
    std::function<std::vector<Tensor>(const std::string& name, const Shape& shape)>;
/// Says of a parameter, by its full name, whether this process holds its values.
using ParameterFilter = std::function<bool(std::string_view name)>;

/// A language model: embedding, residual sublayers x <- x + f(norm(x)) (or, by their options,
/// x <- a norm(x) + f(norm(x))), final norm, head; built from a flat list of specs. There are no
/// classes for published architectures, only such lists.
///
/// Thread safety: `forward` is const; concurrent calls need contexts and states of their own.
class Stack {
 public:
  /// Builds the modules; parameters have shapes but no values yet.
  explicit Stack(const ModelConfig& config, const StackOptions& options = {});
  Stack(const Stack&) = delete;  // the list of parameters points into it
  Stack& operator=(const Stack&) = delete;

  /// Exactly one of these gives the parameters their values; those that `filter` refuses get none,
  /// and the stack runs only with an expert_host that evaluates in their place.
  void load(Context& ctx, const Checkpoint& checkpoint, const ParameterFilter& filter = {});
  void load(Context& ctx, const ParameterSource& source, const ParameterFilter& filter = {});
  void initialize(Context& ctx, const Rng& rng, const ParameterFilter& filter = {});

  /// After an optimiser step: sublayers move what no gradient trains (see Sublayer::after_step).
  void after_step(Context& ctx, const ExpertLoads& loads);

  /// After an optimiser step changed the float32 masters: packs the matrices again.
  void repack(Context& ctx);

  /// tokens (N) as packed in `batch` -> logits (rows or N, V) float32.
  Tensor forward(Context& ctx, std::span<const int32_t> tokens, const SequenceBatch& batch,
                 const ForwardOptions& options = {}) const;

  /// Refuses, in the name of `who`, a stack with a sublayer that sees later tokens: nothing it says
  /// of the next one is a prediction.
  void check_causal(std::string_view who) const;

  /// A state that has read nothing, with the slots of `adaptation` if there is one. Refused where a
  /// sublayer does not stream.
  State make_state(const Context& ctx, const Adaptation* adaptation = nullptr) const;
  std::vector<StateSpec> state_specs() const;

  struct NamedParameter {
    std::string name;  // full path, e.g. "sublayers.0.mamba2.in_proj.weight"
    Parameter* parameter;
  };
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  int64_t parameter_count() const;
  /// (V, D): of the logits, which the embedding's may be as well.
  const Weight& head() const { return config_.tied ? embedding_.weight : head_.weight; }
  /// Of these, what one token's logits read: k of the E experts of a mixture.
  int64_t active_parameter_count() const;
  /// Bytes of packed matrices and plain parameters.
  int64_t weight_bytes() const;

  /// Matrix-product FLOPs of one token's forward pass, the head included.
  double matmul_flops() const;

  const ModelConfig& config() const { return config_; }

  struct Residual {
    Norm norm;
    std::vector<std::unique_ptr<Sublayer>> branches;
    std::vector<std::string> names;  // registry names, for reports
    bool feeds_next = false;         // Traits::feeds_next: no norm of its own
    ResidualSource source;
  };
  const std::vector<Residual>& sublayers() const { return sublayers_; }

 private:
  Tensor run_sublayer(Context& ctx, size_t index, const Tensor& h, Stream& stream,
                      const LayerState* state, const SublayerWatch* watch = nullptr) const;
  Tensor recompute_sublayer(Context& ctx, size_t index, const Tensor& h, Stream& stream,
                            SlotTensors* carried) const;
  void check_batch(std::span<const int32_t> tokens, const SequenceBatch& batch,
                   const ForwardOptions& options) const;

  ModelConfig config_;
  StackOptions options_;
  Parameter embedding_, head_;
  Norm embedding_norm_;
  std::vector<Residual> sublayers_;
  Norm final_norm_;
  std::vector<NamedParameter> parameters_;
};

}  // namespace braid
