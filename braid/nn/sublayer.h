#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/rng.h"
#include "braid/core/sequence_batch.h"
#include "braid/nn/expert_loads.h"
#include "braid/nn/parameter.h"
#include "braid/nn/spec.h"
#include "braid/nn/state.h"
#include "braid/ops/rope/rope.h"

namespace braid {

class ExpertHost;

/// What a forward pass is told beside its batch.
struct StreamOptions {
  /// The declared maximum context, which fixes rotary scales that depend on the whole length
  /// (dynamic, longrope) while a state is carried; 0: each sequence's own length.
  int64_t rope_context = 0;
  /// Randomness of training (jitter, dropout); none: the pass is that of inference.
  std::optional<Rng> noise = std::nullopt;
  /// Gathers how many tokens chose each expert; null: nobody asks.
  ExpertLoads* loads = nullptr;
  /// Evaluates the chosen experts (expert_host.h); null: the sublayer does, with its own weights.
  ExpertHost* expert_host = nullptr;
};

/// What flows down the stack beside the hidden rows: computed once per forward pass, read by all.
class Stream {
 public:
  explicit Stream(const SequenceBatch& batch, const StreamOptions& options = {})
      : batch_(&batch), options_(options) {}
  const SequenceBatch& batch() const { return *batch_; }
  const StreamOptions& options() const { return options_; }

  /// Rotation angles of this batch for one rotary configuration; layers that share it share them.
  const RopeAngles& angles(Context& ctx, const RopeOptions& options);

  /// Leaves a tensor for later sublayers; published twice, the later one holds. It is taped, and
  /// the recomputation of a sublayer passes it in and out like the hidden rows. The stack itself
  /// publishes `kEmbedding`, the (N, D) rows that entered it.
  void publish(std::string_view name, Tensor value);
  bool has(std::string_view name) const { return published_.contains(name); }
  /// Throws Error(kUsage) where no earlier sublayer published it.
  const Tensor& value(std::string_view name) const;

  using Published = std::map<std::string, Tensor, std::less<>>;
  const Published& published() const { return published_; }

  static constexpr std::string_view kEmbedding = "embedding";

 private:
  const SequenceBatch* batch_;
  StreamOptions options_;
  Published published_;
  std::vector<std::pair<RopeOptions, RopeAngles>> angles_;
};

/// The sizes a sublayer is built with.
struct SublayerConfig {
  int64_t width = 0;  // D
  double norm_eps = 1e-5;
  DType state_dtype = DType::kF32;  // of keys and values
  int64_t index = 0;                // among `count` residual sublayers, for initialisation
  int64_t count = 1;
  int64_t ordinal = 0;  // among the `of_kind` sublayers of the same name
  int64_t of_kind = 1;
  /// What sublayers with the same `share` own together, by name and id; null: nothing is shared.
  std::map<std::string, std::shared_ptr<void>, std::less<>>* shared = nullptr;
};

/// f of x <- x + f(norm(x)): a mixer moves information along the sequence, an ffn works at one
/// position. One forward serves training (no state), prefill and decode (state).
///
/// Thread safety: forward is const and may run on several contexts at once with different states.
class Sublayer {
 public:
  virtual ~Sublayer() = default;

  /// y, x (N, D) packed as `stream.batch()`. Without `state` every sequence begins at its first row
  /// with the zero state; with it, `state` is read and left as after the last row. A state of
  /// tensors (SlotTensors) is differentiated where Traits::state_gradients says so, else refused.
  virtual Tensor forward(Context& ctx, const Tensor& x, Stream& stream,
                         const LayerState* state) const = 0;
  virtual StateSpec state_spec() const { return {}; }
  virtual std::vector<Parameter*> parameters() = 0;
  /// Floating-point operations of one token's matrix products (2 a multiply-add).
  virtual double matmul_flops() const;
  /// Called in training after each step of the optimiser, with the loads of that step: parameters
  /// that no gradient trains may move.
  virtual void after_step(Context& ctx, const ExpertLoads& loads);
};

/// What the property suite may ask of an entry.
struct Traits {
  bool mixer = true;  // false: an ffn
  bool causal = true;
  bool streams = true;       // can carry a state
  bool state_grows = false;  // with the number of tokens
  /// Accepts a state of tensors and differentiates it. Never so where the state is keys and values,
  /// one row a token: those are exempt.
  bool state_gradients = false;
  /// Its x is h itself, without a norm, and its y is added to the input of the next sublayer (in
  /// front of that one's norm), not to h.
  bool feeds_next = false;
  /// A choice made of x and the parameters, held constant by the gradient, makes steps in y.
  bool chooses = false;
};

/// One line of the registry.
struct SublayerEntry {
  std::string_view name;
  std::unique_ptr<Sublayer> (*make)(const SublayerConfig& config, SpecOptions& options);
  Traits traits;
  std::string_view example;  // a spec of it at width 64, for tests and messages
  std::string_view summary;
};

/// All mixers and ffns, in one table.
std::span<const SublayerEntry> sublayer_registry();
const SublayerEntry* find_sublayer(std::string_view name);

/// Builds one sublayer from its spec, whose options are the module's own, in_scale and out_scale
/// (multipliers of x and y), residual and residual_scale (the stack's business). Throws Error(kUsage) with the column for an unknown name, an
/// unknown option or an impossible size.
std::unique_ptr<Sublayer> make_sublayer(const SublayerSpec& spec, const SublayerConfig& config);

}  // namespace braid
