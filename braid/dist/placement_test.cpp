// Goal: the plan is the published one, fits the memory it is given, and evens out a skewed load.
#include "braid/dist/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "braid/core/error.h"
#include "braid/core/rng.h"

namespace braid {
namespace {

// Every slot is filled, every expert has a copy, and `copies` says what `expert_of` says.
void expect_whole(const Placement& p, const PlacementOptions& options) {
  ASSERT_EQ(std::ssize(p.expert_of), options.workers * options.slots);
  ASSERT_EQ(p.workers(), options.workers);
  int64_t listed = 0;
  for (int64_t e = 0; e < p.experts; ++e) {
    ASSERT_FALSE(p.copies[static_cast<size_t>(e)].empty()) << "expert " << e;
    for (const int64_t slot : p.copies[static_cast<size_t>(e)]) {
      EXPECT_EQ(p.expert_of[static_cast<size_t>(slot)], e);
      EXPECT_TRUE(p.holds(p.worker_of(slot), e));
      ++listed;
    }
  }
  EXPECT_EQ(listed, options.workers * options.slots);
}

std::vector<double> zipf(int64_t experts, uint64_t seed) {
  std::vector<double> loads;
  for (int64_t e = 0; e < experts; ++e) loads.push_back(std::floor(1e6 / double(e + 1)));
  const Rng rng(seed);
  for (uint64_t i = loads.size(); i-- > 1;) std::swap(loads[i], loads[rng.below(i, i + 1)]);
  return loads;
}

// The example published with the algorithm: two layers, 4 groups, 2 nodes, 8 workers.
TEST(Placement, IsThePublishedPlan) {
  const PlacementOptions options{.workers = 8, .slots = 2, .groups = 4, .nodes = 2};
  const std::vector<std::vector<double>> loads{
      {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
      {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
  const std::vector<std::vector<int64_t>> want{{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                               {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
  for (size_t layer = 0; layer < loads.size(); ++layer) {
    const Placement p = plan_placement(loads[layer], options);
    EXPECT_EQ(p.expert_of, want[layer]);
    expect_whole(p, options);
  }
}

TEST(Placement, EvensOutAZipfLoad) {
  const PlacementOptions budget{.workers = 8, .slots = 10};
  for (uint64_t seed : {1, 2, 3}) {
    const std::vector<double> loads = zipf(64, seed);
    const double before =
        imbalance(worker_loads(contiguous_placement(64, {.workers = 8, .slots = 8}), loads));
    const Placement plan = plan_placement(loads, budget);
    expect_whole(plan, budget);
    const double after = imbalance(worker_loads(plan, loads));
    RecordProperty("before_" + std::to_string(seed), std::to_string(before));
    RecordProperty("after_" + std::to_string(seed), std::to_string(after));
    EXPECT_GT(before, 1.5);
    EXPECT_LT(after, 1.15);
  }
}

// In rank order, the hot experts are all on the first worker.
TEST(Placement, EvensOutAZipfLoadInOrder) {
  std::vector<double> loads;
  for (int e = 0; e < 64; ++e) loads.push_back(1.0 / (e + 1));
  const auto start = contiguous_placement(64, {.workers = 8, .slots = 8});
  EXPECT_NEAR(imbalance(worker_loads(start, loads)), 4.583, 0.001);
  const Placement plan = plan_placement(loads, {.workers = 8, .slots = 10});
  EXPECT_LT(imbalance(worker_loads(plan, loads)), 1.15);
}

TEST(Placement, TiesGoToTheLowerIndex) {
  const std::vector<double> loads(6, 1.0);
  const Placement p = plan_placement(loads, {.workers = 4, .slots = 2});
  // The second copies are of experts 0 and 1; halves are lightest, so all four are packed last.
  EXPECT_EQ(p.expert_of, (std::vector<int64_t>{2, 0, 3, 1, 4, 0, 5, 1}));
  const std::vector<double> nothing(6, 0.0);
  expect_whole(plan_placement(nothing, {.workers = 4, .slots = 2}), {.workers = 4, .slots = 2});
}

TEST(Placement, FitsEverySizeItAccepts) {
  const Rng rng(5);
  uint64_t n = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const auto draw = [&](uint64_t low, uint64_t high) {
      return static_cast<int64_t>(low + rng.below(n++, high - low + 1));
    };
    const int64_t nodes = draw(1, 3), per_node = draw(1, 4), groups = nodes * draw(1, 3);
    const int64_t experts = groups * draw(1, 5), workers = nodes * per_node;
    const PlacementOptions options{.workers = workers,
                                   .slots = least_slots(experts, workers) + draw(0, 3),
                                   .groups = groups,
                                   .nodes = nodes};
    std::vector<double> loads;
    for (int64_t e = 0; e < experts; ++e) loads.push_back(static_cast<double>(draw(0, 50)));
    const Placement plan = plan_placement(loads, options);
    expect_whole(plan, options);
    EXPECT_EQ(plan_placement(loads, options).expert_of, plan.expert_of);
    expect_whole(contiguous_placement(experts, options), options);
    // A group stays on one node.
    const int64_t node_slots = per_node * options.slots, size = experts / groups;
    std::vector<std::set<int64_t>> nodes_of(static_cast<size_t>(groups));
    for (int64_t slot = 0; slot < std::ssize(plan.expert_of); ++slot) {
      const int64_t group = plan.expert_of[static_cast<size_t>(slot)] / size;
      nodes_of[static_cast<size_t>(group)].insert(slot / node_slots);
    }
    for (const auto& set : nodes_of) EXPECT_EQ(set.size(), 1u);
  }
}

TEST(Placement, MovesTurnOnePlanIntoTheOther) {
  const PlacementOptions options{.workers = 8, .slots = 10};
  const Placement before = contiguous_placement(64, options);
  const Placement after = plan_placement(zipf(64, 9), options);
  const std::vector<ExpertMove> moves = expert_moves(before, after);
  std::set<std::pair<int64_t, int64_t>> held;
  for (int64_t w = 0; w < 8; ++w) {
    for (const int64_t e : before.experts_of(w)) held.insert({w, e});
  }
  for (const ExpertMove& move : moves) {
    EXPECT_TRUE(before.holds(move.from, move.expert));
    EXPECT_TRUE(held.insert({move.to, move.expert}).second) << "moved to a worker that holds it";
  }
  for (int64_t w = 0; w < 8; ++w) {
    for (const int64_t e : after.experts_of(w)) EXPECT_TRUE(held.contains({w, e}));
  }
  EXPECT_TRUE(expert_moves(after, after).empty());
}

TEST(Placement, RefusesWhatDoesNotFit) {
  const std::vector<double> loads(6, 1.0), negative{1, -1}, broken{1, NAN};
  EXPECT_THROW(plan_placement(loads, {.workers = 2, .slots = 2}), Error);
  EXPECT_THROW(plan_placement(loads, {.workers = 2, .slots = 3, .groups = 4}), Error);
  EXPECT_THROW(plan_placement(loads, {.workers = 3, .slots = 3, .groups = 2, .nodes = 2}), Error);
  EXPECT_THROW(plan_placement(negative, {.workers = 2, .slots = 1}), Error);
  EXPECT_THROW(plan_placement(broken, {.workers = 2, .slots = 1}), Error);
  EXPECT_THROW(plan_placement({}, {.workers = 2, .slots = 1}), Error);
}

TEST(Placement, ImbalanceIsTheLargestOverTheMean) {
  EXPECT_DOUBLE_EQ(imbalance(std::vector<double>{1, 1, 4}), 2.0);
  EXPECT_DOUBLE_EQ(imbalance(std::vector<double>{0, 0}), 1.0);
}

}  // namespace
}  // namespace braid
