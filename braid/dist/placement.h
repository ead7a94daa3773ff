#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace braid {

/// Where the experts of one sublayer live. A worker has a fixed number of slots, each with a copy
/// of one expert; experts that many tokens choose have copies in several slots.
struct Placement {
  int64_t experts = 0;                       // E
  int64_t slots = 0;                         // of a worker
  std::vector<int64_t> expert_of;            // (workers * slots), worker by worker
  std::vector<std::vector<int64_t>> copies;  // (E): its slots, ascending

  int64_t workers() const { return static_cast<int64_t>(expert_of.size()) / slots; }
  int64_t worker_of(int64_t slot) const { return slot / slots; }
  /// Its experts, ascending, each once.
  std::vector<int64_t> experts_of(int64_t worker) const;
  bool holds(int64_t worker, int64_t expert) const;
};

struct PlacementOptions {
  int64_t workers = 1;
  /// The memory budget: copies of experts a worker holds. workers * slots >= E.
  int64_t slots = 1;
  /// Experts come in groups of E / groups that stay on one node, and workers in nodes of
  /// workers / nodes, where nodes divides groups; otherwise the plan is made over all of them.
  int64_t groups = 1;
  int64_t nodes = 1;
};

/// The smallest number of slots a worker needs: E / workers, rounded up.
int64_t least_slots(int64_t experts, int64_t workers);

/// Without any load known: even runs of experts in order; a slot left over at the end of a worker's
/// run holds a second copy of the next expert.
Placement contiguous_placement(int64_t experts, const PlacementOptions& options);

/// The plan that spreads `loads` (E, >= 0) over the workers: groups are packed to nodes, each next
/// copy goes to the expert with the most load a copy, and copies are packed to workers, heaviest
/// first into the lightest worker with a free slot. A pure function; ties go to the lower index.
/// Throws Error(kUsage) where the sizes do not fit each other.
/// Source: the expert-parallel load balancer of DeepSeek-AI, arXiv:2412.19437, section 3.4.
Placement plan_placement(std::span<const double> loads, const PlacementOptions& options);

/// The load of each worker if every expert's is shared evenly among its copies.
std::vector<double> worker_loads(const Placement& placement, std::span<const double> loads);
/// The largest over the mean, 1 where all are equal or nothing is loaded: a step takes so many
/// times as long as its work spread evenly would.
double imbalance(std::span<const double> loads);

/// One copy of an expert that a new placement needs on a worker that has none.
struct ExpertMove {
  int64_t expert = 0;
  int64_t from = 0, to = 0;  // workers
  bool operator==(const ExpertMove&) const = default;
};

/// What turns one placement into the other, by expert and receiver; of the workers that hold an
/// expert, the one that sends the least so far sends it. A pure function.
std::vector<ExpertMove> expert_moves(const Placement& before, const Placement& after);

}  // namespace braid
