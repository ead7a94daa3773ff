// Goal: the generator is the published one, and what is made from it has the right distribution.
// Method: known answers of Philox4x32-10 (Random123, examples/kat_vectors), moments of large
// samples.

#include "braid/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace braid {
namespace {

using Block = std::array<uint32_t, 4>;

TEST(Rng, KnownAnswers) {
  // Counter (index, stream), key (seed), low word first.
  EXPECT_EQ(Rng(0, 0).block(0), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Rng(~uint64_t{0}, ~uint64_t{0}).block(~uint64_t{0}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Rng(0x299f31d0a4093822u, 0x0370734413198a2eu).block(0x85a308d3243f6a88u),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, NumbersAreAFunctionOfSeedStreamAndIndex) {
  EXPECT_EQ(Rng(1).block(5), Rng(1).block(5));
  EXPECT_NE(Rng(1).block(5), Rng(2).block(5));
  EXPECT_NE(Rng(1).block(5), Rng(1, 1).block(5));
  EXPECT_NE(Rng(1).block(5), Rng(1).block(uint64_t{5} << 32));
  EXPECT_EQ(Rng(1).fork(3).block(9), Rng(1).fork(3).block(9));
  std::set<Block> seen;
  for (uint64_t stream = 0; stream < 200; ++stream) {
    seen.insert(Rng(1).fork(stream).block(0));
    seen.insert(Rng(1).block(stream));
  }
  EXPECT_EQ(seen.size(), 400u);
}

TEST(Rng, UniformIsFlatAndBelowOne) {
  const Rng rng(7);
  std::array<int, 16> bins{};
  constexpr int kDraws = 64'000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const float u = rng.uniform(i);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ++bins[static_cast<size_t>(u * 16)];
  }
  double chi = 0;
  for (const int n : bins) chi += (n - kDraws / 16.0) * (n - kDraws / 16.0) / (kDraws / 16.0);
  EXPECT_LT(chi, 44.3);  // 15 degrees, once in 10,000
}

TEST(Rng, NormalHasItsMoments) {
  const Rng rng(8);
  constexpr int kDraws = 100'000;
  double m[5] = {};
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double x = rng.normal(i);
    ASSERT_TRUE(std::isfinite(x));
    double power = 1;
    for (double& moment : m) {
      moment += power;
      power *= x;
    }
  }
  const double n = kDraws;
  // Four standard errors each: sqrt(1, 2, 15, 96 / n).
  EXPECT_NEAR(m[1] / n, 0, 4 * std::sqrt(1 / n));
  EXPECT_NEAR(m[2] / n, 1, 4 * std::sqrt(2 / n));
  EXPECT_NEAR(m[3] / n, 0, 4 * std::sqrt(15 / n));
  EXPECT_NEAR(m[4] / n, 3, 4 * std::sqrt(96 / n));
}

TEST(Rng, BelowIsTheUpperHalfOfTheProduct) {
  const Rng rng(9);
  for (const uint64_t bound : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{1000},
                               uint64_t{1} << 32, (uint64_t{1} << 33) + 5, ~uint64_t{0}}) {
    for (uint64_t i = 0; i < 2000; ++i) {
      const Block bits = rng.block(i);
      const uint64_t word = (uint64_t{bits[0]} << 32) | bits[1];
      __extension__ using Wide = unsigned __int128;
      const auto want = static_cast<uint64_t>((static_cast<Wide>(word) * bound) >> 64);
      ASSERT_EQ(rng.below(i, bound), want);
      ASSERT_LT(want, bound);
    }
  }
}

}  // namespace
}  // namespace braid
