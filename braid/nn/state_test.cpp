// Goal: a state is a value: copies share memory until one of them writes, rings stay where they
// are, and what is given back has the sizes that were promised. Method: a state of one slot of each
// kind, written through the pointers that kernels get.

#include "braid/nn/state.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/files.h"

namespace braid {
namespace {

constexpr size_t kFixed = 0, kRing = 1, kGrowing = 2;
constexpr int64_t kWindow = 100;
constexpr int64_t kRingPages = 7;  // ceil((100 + 256) / 64) + 1

// Rows of a ring or growing slot are one float a token here: the token's own number.
StateSpec spec() {
  return {{.name = "fixed", .kind = SlotKind::kFixed, .shape = {3, 5}},
          {.name = "ring", .kind = SlotKind::kRing, .shape = {1}, .window = kWindow},
          {.name = "growing", .kind = SlotKind::kGrowing, .shape = {1}}};
}

class StateTest : public ::testing::Test {
 protected:
  static State make() { return State(make_device({}), {StateSpec{}, spec()}); }

  // What a sublayer does with `n` tokens: the fixed slot counts them, the others note each one.
  static void read(State& state, int64_t n, float offset = 0) {
    state.fixed(1, kFixed)[7] += static_cast<float>(n);
    for (const size_t slot : {kRing, kGrowing}) {
      const PageTable table = state.pages(1, slot, n);
      const int64_t begin = std::max(state.position(), state.position() + n - kWindow);
      for (int64_t t = slot == kRing ? begin : state.position(); t < state.position() + n; ++t) {
        static_cast<float*>(table.page_of(t))[t % kPageTokens] = static_cast<float>(t) + offset;
      }
    }
    state.advance(n);
  }
  static void expect_remembers(State& state, float offset = 0, int64_t from = 0) {
    EXPECT_EQ(state.fixed(1, kFixed)[7], static_cast<float>(state.position()));
    const PageTable ring = state.pages(1, kRing, 1), growing = state.pages(1, kGrowing, 1);
    const auto at = [](const PageTable& table, int64_t t) {
      return static_cast<const float*>(table.page_of(t))[t % kPageTokens];
    };
    for (int64_t t = from; t < state.position(); ++t) {
      ASSERT_EQ(at(growing, t), static_cast<float>(t) + offset);
      if (t >= state.position() - kWindow) {
        ASSERT_EQ(at(ring, t), static_cast<float>(t) + offset);
      }
    }
  }
};

TEST_F(StateTest, ReadsZeroBeforeItIsWritten) {
  State state = make();
  for (int i = 0; i < 15; ++i) EXPECT_EQ(state.fixed(1, kFixed)[i], 0);
  EXPECT_EQ(state.position(), 0);
  EXPECT_EQ(state.specs().size(), 2u);
}

TEST_F(StateTest, RemembersTokensHoweverTheyCome) {
  for (const int64_t piece : {1, 63, 64, 65, 255, 256}) {
    State state = make();
    for (int i = 0; i < 1000 / piece + 2; ++i) read(state, piece);
    expect_remembers(state);
    const PageTable ring = state.pages(1, kRing, 1);
    EXPECT_EQ(ring.count, kRingPages);
    EXPECT_EQ(state.pages(1, kGrowing, 1).count, (state.position() + 64) / 64);
  }
}

TEST_F(StateTest, BytesAreThosePromised) {
  State state = make();
  EXPECT_EQ(state.bytes(), 0);
  int64_t largest_ring = 0;
  for (const int64_t n : {1, 62, 1, 1, 200, 400, 1000}) {
    read(state, n);
    EXPECT_EQ(state.bytes(), state_bytes(spec(), state.position())) << state.position();
    largest_ring = std::max(largest_ring, state_bytes({spec()[kRing]}, state.position()));
  }
  EXPECT_EQ(largest_ring, kRingPages * kPageTokens * 4);
  EXPECT_EQ(state_bytes({spec()[kFixed]}, 0), 60);
  EXPECT_EQ(state_bytes({spec()[kGrowing]}, 65), 2 * kPageTokens * 4);
  EXPECT_EQ(
      state_bytes(
          {{.name = "k", .kind = SlotKind::kGrowing, .shape = {2, 8}, .dtype = DType::kBF16}}, 1),
      kPageTokens * 16 * 2);
}

TEST_F(StateTest, ACopySharesEveryBlockUntilItIsWritten) {
  State state = make();
  read(state, 700);
  State copy = state;
  const auto storages = [](const State& s) {
    std::vector<const void*> all;
    for (const size_t slot : {kFixed, kRing, kGrowing}) {
      for (const Tensor& block : s.blocks(1, slot)) all.push_back(block.raw());
    }
    return all;
  };
  const auto before = storages(state);
  EXPECT_EQ(storages(copy), before);

  read(copy, 1, 0.5f);
  const auto after = storages(copy);
  ASSERT_EQ(after.size(), before.size());
  int changed = 0;
  for (size_t i = 0; i < after.size(); ++i) changed += after[i] != before[i];
  EXPECT_EQ(changed, 3);  // the fixed block and one page of each of the others
  EXPECT_EQ(storages(state), before);
  expect_remembers(state);

  // Blocks owned alone are written in place.
  read(copy, 1, 0.5f);
  EXPECT_EQ(storages(copy), after);
}

TEST_F(StateTest, CopiesGoTheirOwnWays) {
  State state = make();
  read(state, 90);
  std::vector<State> copies(4, state);
  for (size_t i = 0; i < copies.size(); ++i) read(copies[i], 300, static_cast<float>(i) / 8);
  for (size_t i = 0; i < copies.size(); ++i) {
    expect_remembers(copies[i], static_cast<float>(i) / 8, 90);
  }
  expect_remembers(state);
}

TEST_F(StateTest, ReturnsToAMark) {
  for (const int64_t at : {0, 10, 63, 64, 500, 1000}) {
    for (const int64_t on : {0, 1, 31, 32}) {
      State state = make();
      if (at > 0) read(state, at);
      const State::Mark mark = state.mark();
      if (on > 0) read(state, on, 0.25f);
      state.restore(mark);
      EXPECT_EQ(state.position(), at);
      EXPECT_EQ(state.fixed(1, kFixed)[7], static_cast<float>(at));
      read(state, 50);
      expect_remembers(state);
      EXPECT_EQ(state.bytes(), state_bytes(spec(), at + 50));
    }
  }
}

TEST_F(StateTest, AMarkSurvivesManyReturns) {
  State state = make();
  read(state, 40);
  const State::Mark mark = state.mark();
  for (int i = 0; i < 5; ++i) {
    read(state, 20, static_cast<float>(i));
    state.restore(mark);
    EXPECT_EQ(state.fixed(1, kFixed)[7], 40);
  }
  expect_remembers(state);
}

TEST_F(StateTest, RefusesToReturnTooFarOrForward) {
  State state = make();
  read(state, 40);
  const State::Mark mark = state.mark();
  read(state, kMaxReplay + 1);
  test::expect_refused([&] { state.restore(mark); }, "from position 73 to 40, want at most 32");
  State young = make();
  test::expect_refused([&] { young.restore(mark); }, "from position 0 to 40");
  expect_remembers(state);
}

TEST_F(StateTest, LoadsWhatItGaveAway) {
  for (const int64_t n : {1, 64, 65, 447, 448, 449, 1000}) {
    State state = make();
    read(state, n);
    std::vector<std::vector<std::vector<Tensor>>> blocks(2);
    for (const size_t slot : {kFixed, kRing, kGrowing}) {
      blocks[1].push_back(state.blocks(1, slot));
      EXPECT_EQ(static_cast<int64_t>(blocks[1].back().size()), state.blocks_wanted(1, slot, n));
    }
    State loaded = make();
    read(loaded, 130);
    loaded.load(n, blocks);
    EXPECT_EQ(loaded.position(), n);
    expect_remembers(loaded);
    read(loaded, 200);
    expect_remembers(loaded);
    expect_remembers(state);  // loading copied
  }
}

TEST_F(StateTest, RefusesBlocksThatDoNotFitThePosition) {
  State state = make();
  read(state, 70);
  std::vector<std::vector<std::vector<Tensor>>> blocks(2);
  for (const size_t slot : {kFixed, kRing, kGrowing}) blocks[1].push_back(state.blocks(1, slot));
  State loaded = make();
  test::expect_refused([&] { loaded.load(64, blocks); }, "slot ring of sublayer 1 has 2 blocks");
  test::expect_refused([&] { loaded.load(129, blocks); }, "want 3");
  blocks[1][kGrowing].pop_back();
  test::expect_refused([&] { loaded.load(70, blocks); }, "slot growing of sublayer 1 has 1 blocks");
  blocks[1][kFixed][0] = host_tensor(std::vector<float>(14), {14});
  test::expect_refused([&] { loaded.load(70, blocks); }, "a block of 56 bytes, want 60");
}

TEST_F(StateTest, LayersSeeTheStatesOfABatch) {
  State a = make(), b = make();
  read(a, 10);
  State* states[] = {&a, &b};
  SequenceBatch batch;
  batch.add(60, 10);
  batch.add(5);
  const LayerState view(states, 1, batch);
  const auto fixed = view.fixed(kFixed);
  ASSERT_EQ(fixed.size(), 2u);
  EXPECT_EQ(fixed[0], a.fixed(1, kFixed));
  EXPECT_EQ(fixed[1], b.fixed(1, kFixed));
  const auto pages = view.pages(kGrowing);
  EXPECT_EQ(pages[0].count, 2);
  EXPECT_EQ(pages[1].count, 1);
  const auto branch = view.branch(kRing).pages(kGrowing - kRing);
  EXPECT_EQ(branch[0].pages[0], pages[0].pages[0]);
}

}  // namespace
}  // namespace braid
