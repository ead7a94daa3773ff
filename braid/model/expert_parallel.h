#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "braid/dist/placement.h"
#include "braid/dist/transport.h"
#include "braid/model/stack.h"
#include "braid/nn/expert_host.h"

namespace braid {

struct ExpertParallelOptions {
  /// Copies of experts that a rank holds in each layer, its memory budget; 0: as few as hold all.
  int64_t slots = 0;
  /// See PlacementOptions.
  int64_t groups = 1, nodes = 1;
  /// Steps between two plans; 0: the first placement, which knows no load, stays.
  int64_t replan_every = 0;
  /// What the loads of the past count beside those since the last plan, from one plan to the next.
  double past = 0.5;
  /// A plan is followed where it lowers max / mean of the ranks by at least this share.
  double least_gain = 0.02;
  /// Bytes of experts that are under way at a time, at least one expert.
  size_t move_bytes = size_t{64} << 20;
};

struct ExpertReport {
  struct Layer {
    /// Rows evaluated by the busiest rank over the mean of all ranks, as measured: until the first
    /// plan, and since the layer's placement changed last.
    double before = 1, after = 1;
    int64_t switches = 0;  // times its placement changed
  };
  std::vector<Layer> layers;
  std::vector<int64_t> resident_bytes;  // of experts, by rank
  int64_t all_bytes = 0;                // of one copy of every expert
  int64_t moved_experts = 0;
  int64_t steps = 0;
};

/// The experts of a stack spread over the ranks of a transport. Every rank has the whole stack but
/// only the experts of its placement, and runs its own sequences; each row goes to a rank that
/// holds the expert it chose, and what comes back is summed in the order of slots: the bits of one
/// process with all experts.
///
/// A step is one forward pass (or idle_pass) on every rank, followed by end_step. Between steps the
/// placement may be planned again from the loads met so far; experts then travel while the next
/// steps run by the old placement, and a layer changes over when it has all of its own, at the same
/// step on every rank; copies that nobody needs are freed.
///
/// Thread safety: one thread at a time. Calls are collective unless they say otherwise.
class ExpertParallel final : public ExpertHost {
 public:
  /// Not collective. The stack's parameters need no values yet. Throws Error(kUsage) where it has
  /// no experts or they do not fit.
  ExpertParallel(Transport& transport, const Stack& stack, const ExpertParallelOptions& options);

  /// Not collective: whether this rank reads the values of parameter `name` (a ParameterFilter):
  /// all but the experts that others hold.
  bool reads(std::string_view name) const;

  Tensor evaluate(Context& ctx, int64_t layer, const Tensor& x, const Tensor& ids,
                  const Tensor& weights, ExpertActivation activation) override;
  /// The part of a rank that has no sequences in a step: it serves the others' rows.
  void idle_pass(Context& ctx);
  void end_step(Context& ctx);
  /// Receives what is under way; after the last step, before the transport ends.
  void settle(Context& ctx) { finish_moves(ctx); }

  ExpertReport report();
  Transport& transport() const { return *transport_; }

 private:
  struct Layer {
    std::string prefix;                              // of its experts' parameters
    std::vector<std::array<Parameter*, 2>> weights;  // (E): in, out
    Placement placement;
    std::optional<Placement> next;
    int64_t moves_left = 0;
    std::vector<int64_t> chosen;  // (E) by this rank's rows since the last plan
    std::vector<double> average;  // (E) over all ranks, moving
    std::vector<int64_t> turn;    // (E) which copy serves next
    int64_t rows = 0;             // evaluated here since `rows` was set to 0
    ExpertReport::Layer report;
  };
  struct Move {
    size_t layer = 0;
    ExpertMove move;
  };
  // What one rank sends to another in a layer.
  struct Parcel {
    std::vector<int32_t> assignments;  // pairs: expert, row of `tokens`
    std::vector<int64_t> tokens;       // rows of x that travel, each once
  };

  PlacementOptions placement_options(const Layer& layer) const;
  std::vector<Parcel> share_out(Layer& layer, const Tensor& ids, const Tensor& place);
  std::vector<std::vector<std::byte>> serve(Context& ctx, Layer& layer, const ReceivedParts& asked);
  ReceivedParts exchange(Context& ctx, Layer& layer, const Tensor& x,
                         const std::vector<Parcel>& parcels, ExpertActivation activation);

  void plan();
  void start_moves(Context& ctx);
  void finish_moves(Context& ctx);
  void change_over(Layer& layer);
  DType dtype() const;
  std::vector<double> rows_of_ranks(const Layer& layer);

  Transport* transport_;
  ExpertParallelOptions options_;
  std::vector<Layer> layers_;
  std::deque<Move> waiting_;
  std::vector<Move> moving_;
  int64_t steps_ = 0, plans_ = 0, moved_ = 0;
};

}  // namespace braid
