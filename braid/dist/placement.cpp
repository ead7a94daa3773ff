#include "braid/dist/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "braid/core/error.h"

namespace braid {
namespace {

size_t index(int64_t i) { return static_cast<size_t>(i); }

struct Packing {
  std::vector<int64_t> pack, place;  // of each item: its pack and its place inside
};

// Items by falling weight, each into the lightest pack that has a place left; every pack ends with
// the same number of items.
Packing pack_evenly(std::span<const double> weights, int64_t packs) {
  const int64_t items = std::ssize(weights), most = items / packs;
  std::vector<int64_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  // With one item a pack, weights decide nothing, and items stay where they are.
  if (most > 1) {
    std::ranges::stable_sort(
        order, [&](int64_t a, int64_t b) { return weights[index(a)] > weights[index(b)]; });
  }
  Packing result{.pack = std::vector<int64_t>(weights.size()),
                 .place = std::vector<int64_t>(weights.size())};
  std::vector<double> load(index(packs), 0.0);
  std::vector<int64_t> filled(index(packs), 0);
  for (const int64_t item : order) {
    int64_t best = -1;
    if (most == 1) {
      best = item;
    } else {
      for (int64_t p = 0; p < packs; ++p) {
        if (filled[index(p)] == most) continue;
        if (best < 0 || load[index(p)] < load[index(best)]) best = p;
      }
    }
    result.pack[index(item)] = best;
    result.place[index(item)] = filled[index(best)]++;
    load[index(best)] += weights[index(item)];
  }
  return result;
}

// The expert of each of `copies` copies: all once, then again whichever carries most a copy.
std::vector<int64_t> replicate(std::span<const double> loads, int64_t copies) {
  std::vector<int64_t> of(loads.size()), count(loads.size(), 1);
  std::iota(of.begin(), of.end(), 0);
  while (std::ssize(of) < copies) {
    size_t best = 0;
    double most = -1;
    for (size_t e = 0; e < loads.size(); ++e) {
      const double share = loads[e] / static_cast<double>(count[e]);
      if (share > most) {
        most = share;
        best = e;
      }
    }
    of.push_back(static_cast<int64_t>(best));
    ++count[best];
  }
  return of;
}

void check_sizes(int64_t experts, const PlacementOptions& o) {
  check(experts >= 1 && o.workers >= 1 && o.slots >= 1 && o.groups >= 1 && o.nodes >= 1,
        "placement: {} experts, {} workers, {} slots, {} groups, {} nodes, want at least 1 of each",
        experts, o.workers, o.slots, o.groups, o.nodes);
  check(o.workers * o.slots >= experts,
        "placement: {} workers of {} slots, want room for {} experts", o.workers, o.slots, experts);
  check(experts % o.groups == 0, "placement: {} groups, want a divisor of the {} experts", o.groups,
        experts);
  check(o.workers % o.nodes == 0, "placement: {} nodes, want a divisor of the {} workers", o.nodes,
        o.workers);
}

void index_copies(Placement& placement) {
  placement.copies.assign(index(placement.experts), {});
  for (size_t slot = 0; slot < placement.expert_of.size(); ++slot) {
    placement.copies[index(placement.expert_of[slot])].push_back(static_cast<int64_t>(slot));
  }
}

// Fills the slots of the workers of one node, `first_slot` on, with `members`, whose loads are
// `loads`.
void plan_node(std::span<const int64_t> members, std::span<const double> loads, int64_t workers,
               int64_t first_slot, Placement& placement) {
  const std::vector<int64_t> copies = replicate(loads, workers * placement.slots);
  std::vector<double> count(loads.size(), 0.0), share;
  for (const int64_t e : copies) ++count[index(e)];
  for (const int64_t e : copies) share.push_back(loads[index(e)] / count[index(e)]);
  const Packing packed = pack_evenly(share, workers);
  for (size_t c = 0; c < copies.size(); ++c) {
    const int64_t slot = first_slot + packed.pack[c] * placement.slots + packed.place[c];
    placement.expert_of[index(slot)] = members[index(copies[c])];
  }
}

}  // namespace

std::vector<int64_t> Placement::experts_of(int64_t worker) const {
  const auto begin = expert_of.begin() + worker * slots;
  std::vector<int64_t> list(begin, begin + slots);
  std::ranges::sort(list);
  list.erase(std::unique(list.begin(), list.end()), list.end());
  return list;
}

bool Placement::holds(int64_t worker, int64_t expert) const {
  return std::ranges::any_of(copies[index(expert)],
                             [&](int64_t slot) { return worker_of(slot) == worker; });
}

int64_t least_slots(int64_t experts, int64_t workers) { return (experts + workers - 1) / workers; }

Placement contiguous_placement(int64_t experts, const PlacementOptions& options) {
  check_sizes(experts, options);
  Placement placement{.experts = experts, .slots = options.slots, .expert_of = {}, .copies = {}};
  for (int64_t w = 0; w < options.workers; ++w) {
    const int64_t begin = w * experts / options.workers;
    for (int64_t s = 0; s < options.slots; ++s)
      placement.expert_of.push_back((begin + s) % experts);
  }
  index_copies(placement);
  return placement;
}

Placement plan_placement(std::span<const double> loads, const PlacementOptions& options) {
  const auto experts = std::ssize(loads);
  check_sizes(experts, options);
  for (const double load : loads) {
    check(std::isfinite(load) && load >= 0, "placement: a load of {}, want finite loads >= 0",
          load);
  }
  const bool by_node = options.groups % options.nodes == 0;
  const int64_t nodes = by_node ? options.nodes : 1, groups = by_node ? options.groups : 1;
  const int64_t group_size = experts / groups, per_node = experts / nodes;
  check(options.workers / nodes * options.slots >= per_node,
        "placement: {} slots on each of {} nodes, want room for {} experts",
        options.workers / nodes * options.slots, nodes, per_node);

  std::vector<double> of_group(index(groups), 0.0);
  for (int64_t e = 0; e < experts; ++e) of_group[index(e / group_size)] += loads[index(e)];
  const Packing packed = pack_evenly(of_group, nodes);
  std::vector<int64_t> order(index(experts));  // node by node
  for (int64_t e = 0; e < experts; ++e) {
    const size_t g = index(e / group_size);
    const int64_t place = packed.pack[g] * (groups / nodes) + packed.place[g];
    order[index(place * group_size + e % group_size)] = e;
  }

  Placement placement{.experts = experts,
                      .slots = options.slots,
                      .expert_of = std::vector<int64_t>(index(options.workers * options.slots)),
                      .copies = {}};
  for (int64_t node = 0; node < nodes; ++node) {
    const std::span<const int64_t> members(order.data() + node * per_node, index(per_node));
    std::vector<double> of_members;
    for (const int64_t e : members) of_members.push_back(loads[index(e)]);
    const int64_t workers = options.workers / nodes;
    plan_node(members, of_members, workers, node * workers * options.slots, placement);
  }
  index_copies(placement);
  return placement;
}

std::vector<double> worker_loads(const Placement& placement, std::span<const double> loads) {
  check(std::ssize(loads) == placement.experts,
        "placement: {} loads, want one for each of {} experts", loads.size(), placement.experts);
  std::vector<double> result(index(placement.workers()), 0.0);
  for (int64_t slot = 0; slot < std::ssize(placement.expert_of); ++slot) {
    const size_t e = index(placement.expert_of[index(slot)]);
    result[index(placement.worker_of(slot))] +=
        loads[e] / static_cast<double>(placement.copies[e].size());
  }
  return result;
}

double imbalance(std::span<const double> loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  if (sum <= 0) return 1;
  return *std::ranges::max_element(loads) * static_cast<double>(loads.size()) / sum;
}

std::vector<ExpertMove> expert_moves(const Placement& before, const Placement& after) {
  check(before.experts == after.experts && before.workers() == after.workers(),
        "placement: from {} experts on {} workers to {} on {}, want the same", before.experts,
        before.workers(), after.experts, after.workers());
  std::vector<int64_t> sends(index(before.workers()), 0);
  std::vector<ExpertMove> moves;
  for (int64_t e = 0; e < after.experts; ++e) {
    for (int64_t to = 0; to < after.workers(); ++to) {
      if (!after.holds(to, e) || before.holds(to, e)) continue;
      int64_t from = -1;
      for (const int64_t slot : before.copies[index(e)]) {
        const int64_t holder = before.worker_of(slot);
        if (from < 0 || sends[index(holder)] < sends[index(from)]) from = holder;
      }
      ++sends[index(from)];
      moves.push_back({.expert = e, .from = from, .to = to});
    }
  }
  return moves;
}

}  // namespace braid
