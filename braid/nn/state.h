#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "braid/core/context.h"
#include "braid/core/paged.h"
#include "braid/core/sequence_batch.h"

namespace braid {

enum class SlotKind : uint8_t {
  kFixed,    // one block per sequence: recurrent states, convolution tails
  kRing,     // the last `window` tokens, in pages that are reused
  kGrowing,  // every token, in pages that are appended
};

/// One named piece of a mixer's state. `shape` is per sequence for kFixed and per token otherwise.
struct SlotSpec {
  std::string name;
  SlotKind kind = SlotKind::kFixed;
  Shape shape;
  DType dtype = DType::kF32;
  int64_t window = 0;  // tokens, kRing only
};

/// What a sublayer keeps between calls; empty for one that works at one position.
using StateSpec = std::vector<SlotSpec>;

/// Tokens a ring keeps beyond its window: a long piece is written this much at a time, and the
/// last kMaxReplay positions can be returned to.
inline constexpr int64_t kRingSlack = 256;
inline constexpr int64_t kMaxReplay = 32;

/// Bytes one sequence needs for `spec` after `tokens` tokens.
int64_t state_bytes(const StateSpec& spec, int64_t tokens);

/// The state of one sequence through a whole stack: a value. A copy is a fork; it shares every
/// block until one side writes it.
///
/// Invariants: a fixed slot that was never written reads as zero. Pages exist for all tokens below
/// `position()` that a slot still keeps.
class State {
 public:
  State() = default;
  /// `specs[i]` belongs to sublayer i.
  State(std::shared_ptr<DeviceApi> api, std::vector<StateSpec> specs);

  /// Tokens read so far.
  int64_t position() const { return position_; }
  void advance(int64_t tokens) { position_ += tokens; }

  const std::vector<StateSpec>& specs() const { return specs_; }
  /// Bytes held now; blocks shared with a fork count for both.
  int64_t bytes() const;

  /// The block of a fixed slot, owned by this state alone from here on.
  float* fixed(size_t sublayer, size_t slot);
  /// The pages of a ring or growing slot, ready for `length` tokens to be written at `position()`.
  PageTable pages(size_t sublayer, size_t slot, int64_t length);

  /// Where to return to: the fixed slots (shared, so a mark costs a copy only once they change) and
  /// the position. Pages are not part of it; a ring keeps the last kMaxReplay positions valid.
  struct Mark {
    int64_t position = 0;
    std::vector<std::shared_ptr<Storage>> fixed;
  };
  Mark mark() const;
  /// Requires 0 <= position() - mark.position <= kMaxReplay, unless the state has no ring.
  void restore(const Mark& mark);

  /// For saving and loading: the blocks of one slot as raw tensors (pages first to last), and their
  /// replacement. A loaded slot must have the sizes that `position` implies.
  std::vector<Tensor> blocks(size_t sublayer, size_t slot) const;
  int64_t blocks_wanted(size_t sublayer, size_t slot, int64_t position) const;
  void load(int64_t position, const std::vector<std::vector<std::vector<Tensor>>>& blocks);

 private:
  struct Slot {
    std::vector<std::shared_ptr<Storage>> blocks;
    std::vector<void*> table;  // what PageTable points to
  };
  size_t block_bytes(size_t sublayer, size_t slot) const;
  std::shared_ptr<Storage> allocate(size_t bytes) const;
  void own(std::shared_ptr<Storage>& block, size_t bytes);

  std::shared_ptr<DeviceApi> api_;
  std::vector<StateSpec> specs_;
  std::vector<std::vector<Slot>> slots_;
  int64_t position_ = 0;
};

/// The fixed slots of one sublayer as tensors, through which gradients flow from one piece of a
/// sequence to the one before: back-propagation through time, cut where the caller lets the tape
/// go.
struct SlotTensors {
  std::vector<Tensor> initial;  // by slot, (S, slot shape...) float32; absent: zeros
  std::vector<Tensor> last;     // the same after the last row, set by forward
};

/// What one sublayer sees of the states of a batch. Sequence s of the batch is states[s], or row s
/// of every tensor. A mixer reaches its fixed slots by through_slot, which serves both.
class LayerState {
 public:
  LayerState(std::span<State* const> states, size_t sublayer, const SequenceBatch& batch)
      : states_(states), sublayer_(sublayer), batch_(batch) {}
  LayerState(SlotTensors& tensors, const SequenceBatch& batch)
      : sublayer_(0), batch_(batch), tensors_(&tensors) {}

  /// Slot numbers are positions in the sublayer's own StateSpec. Both refuse a state of tensors.
  std::vector<float*> fixed(size_t slot) const;
  std::vector<PageTable> pages(size_t slot) const;

  /// True for a state of tensors, which has these instead.
  bool has_tensors() const { return tensors_ != nullptr; }
  Tensor initial(size_t slot) const;
  void set_last(size_t slot, Tensor value) const;

  /// The same states for a branch whose slots begin at `offset` (parallel sublayers).
  LayerState branch(size_t offset) const;

 private:
  std::span<State* const> states_;
  size_t sublayer_;
  const SequenceBatch& batch_;
  SlotTensors* tensors_ = nullptr;
  size_t offset_ = 0;
};

/// Runs an op over fixed slot `slot` of `state`, which may be null, and returns its y:
///
///   out_of_place(initial)   the differentiable op: takes the state before the first row (absent:
///                           zeros), returns a struct with `y` and `final_state`
///   in_place(blocks)        the op that overwrites a block per sequence and returns y
template <class OutOfPlace, class InPlace>
auto through_slot(const LayerState* state, size_t slot, OutOfPlace&& out_of_place,
                  InPlace&& in_place) {
  if (state == nullptr) return out_of_place(Tensor{}).y;
  if (!state->has_tensors()) return in_place(state->fixed(slot));
  auto result = out_of_place(state->initial(slot));
  state->set_last(slot, std::move(result.final_state));
  return std::move(result.y);
}

}  // namespace braid
