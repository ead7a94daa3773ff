// Goal: every scaling gives the frequencies of its formula, the kernel turns pairs as the reference
// does, positions are absolute, and the vjp is exact.
// Method: hand-computed float64 values, a templated reference, complex step.

#include <cmath>
#include <numbers>

#include "braid/ops/rope/cases.h"
#include "braid/ops/rope/reference.h"
#include "braid/ops/rope/rope.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::Complex;

RopeOptions options_of(const RopeCase& c) {
  return {.rotary_dim = c.rotary_dim, .interleaved = c.interleaved};
}

template <class T>
std::vector<T> reference_rows(const std::vector<T>& x, const RopeCase& c, int64_t start,
                              const RopeTable& table) {
  std::vector<T> y;
  for (int64_t i = 0; i < c.tokens; ++i) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const auto from = x.begin() + (i * c.heads + h) * c.head_dim;
      const auto head = reference::rope(std::vector<T>(from, from + c.head_dim), start + i,
                                        table.inv_freq, table.attention_factor, table.interleaved);
      y.insert(y.end(), head.begin(), head.end());
    }
  }
  return y;
}

TEST(Rope, MatchesReference) {
  Context ctx({.threads = 2, .poison = true});
  for (const RopeCase& c : kRopeCases) {
    for (const int64_t start : {int64_t{0}, int64_t{77}, int64_t{1} << 40}) {
      const Tensor x = test::randn({c.tokens, c.heads * c.head_dim}, 3);
      const RopeTable table = make_rope_table(options_of(c), 0);
      const Tensor y = rope(ctx, x, SequenceBatch::single(c.tokens, start), c.heads, table);
      const auto want = reference_rows(test::values(x), c, start, table);
      test::expect_close(y, want, test::tolerance(DType::kF32, 2), "rope");
    }
  }
}

TEST(Rope, StridedRowsAndThreeAxes) {
  Context ctx({.threads = 1, .poison = true});
  const RopeCase c{.tokens = 9, .heads = 3, .head_dim = 16, .rotary_dim = 16};
  const Tensor wide = test::randn({9, 100}, 5);
  const Tensor x = wide.slice_columns(20, 68);
  const RopeTable table = make_rope_table(options_of(c), 0);
  const SequenceBatch batch = SequenceBatch::single(9, 4);
  const auto want = reference_rows(test::values(x), c, 4, table);
  test::expect_close(rope(ctx, x, batch, 3, table), want, test::tolerance(DType::kF32, 2), "2-d");
  const Tensor y = rope(ctx, x.reshape({9, 3, 16}), batch, 3, table);
  EXPECT_EQ(y.shape(), (Shape{9, 3, 16}));
  test::expect_close(y, want, test::tolerance(DType::kF32, 2), "3-d");
}

TEST(Rope, TurnsTheLastDimensionsOfAHead) {
  Context ctx({.threads = 1, .poison = true});
  constexpr int64_t n = 5, heads = 3, first = 7, turned = 10, width = first + turned + 2;
  for (const bool interleaved : {false, true}) {
    const RopeTable table = make_rope_table({.rotary_dim = turned, .interleaved = interleaved}, 0);
    const RopeAngles angles = rope_angles(ctx, table, SequenceBatch::single(n, 3));
    Tensor x = test::randn({n, heads * width}, 5);
    Tape tape;
    tape.watch(x);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = rope(taped, x, heads, angles, first);
    tape.backward(ctx, {y}, {y});  // turns back, so that x arrives
    for (int64_t i = 0; i < n * heads; ++i) {
      const float* head = x.f32() + i * width;
      const auto want = reference::rope(std::vector<double>(head + first, head + width),
                                        3 + i / heads, table.inv_freq, 1.0, interleaved);
      const float* got = y.f32() + i * width;
      EXPECT_TRUE(std::equal(got, got + first, head));
      test::expect_close(std::vector<double>(got + first, got + width), want,
                         test::tolerance(DType::kF32, 2), "rope");
    }
    test::expect_close(tape.grad(x), x, test::tolerance(DType::kF32, 2), "dx");
    EXPECT_THROW(rope(ctx, x, heads, angles, first + 3), Error);
  }
}

TEST(Rope, StartsAnywhereAndPacksWithoutChange) {
  Context one({.threads = 1}), two({.threads = 2});
  const RopeTable table = make_rope_table({.rotary_dim = 32}, 0);
  const Tensor x = test::randn({200, 2 * 32}, 8);
  const Tensor whole = rope(one, x, SequenceBatch::single(200, 1000), 2, table);
  EXPECT_TRUE(test::same_bits(whole, rope(two, x, SequenceBatch::single(200, 1000), 2, table)));
  const Tensor tail = rope(two, x.slice_rows(70, 200), SequenceBatch::single(130, 1070), 2, table);
  EXPECT_TRUE(test::same_bits(tail, whole.slice_rows(70, 200)));
  SequenceBatch packed;
  packed.add(70, 1000);
  packed.add(130, 1070);
  EXPECT_TRUE(test::same_bits(rope(two, x, packed, 2, table), whole));
}

TEST(Rope, GradientIsExact) {
  Context ctx({.threads = 2, .poison = true});
  for (const RopeCase& c : {RopeCase{3, 2, 16, 10, false}, RopeCase{3, 2, 16, 16, true}}) {
    RopeTable table = make_rope_table(options_of(c), 0);
    table.attention_factor = 1.25;
    Tensor x = test::randn({c.tokens, c.heads * c.head_dim}, 1);
    const Tensor dy = test::randn(x.shape(), 2);
    Tape tape;
    tape.watch(x);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = rope(taped, x, SequenceBatch::single(c.tokens, 5), c.heads, table);
    tape.backward(ctx, {y}, {dy});
    const auto want = test::complex_step(test::values(x), [&](const std::vector<Complex>& z) {
      return test::dot(reference_rows(z, c, 5, table), test::values(dy));
    });
    test::expect_close(tape.grad(x), want, test::tolerance(DType::kF32, 2), "dx");
  }
}

void expect_table(const RopeTable& table, const std::vector<double>& want, double factor) {
  ASSERT_EQ(table.inv_freq.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(table.inv_freq[i] / want[i], 1.0, 1e-14) << i;
  }
  EXPECT_NEAR(table.attention_factor, factor, 1e-14);
}

TEST(RopeTable, DefaultLinearDynamic) {
  // rotary_dim 4: frequencies 1 and theta^(-1/2)
  expect_table(make_rope_table({.theta = 10000, .rotary_dim = 4}, 0), {1.0, 0.01}, 1.0);
  expect_table(
      make_rope_table({.kind = RopeKind::kLinear, .theta = 10000, .rotary_dim = 4, .factor = 4}, 0),
      {0.25, 0.0025}, 1.0);
  // theta' = 100 (2 * 3 - 1)^2 = 2500 at three times the context
  const RopeOptions dynamic{
      .kind = RopeKind::kDynamic, .theta = 100, .rotary_dim = 4, .factor = 2, .max_position = 10};
  expect_table(make_rope_table(dynamic, 30), {1.0, 1.0 / 50.0}, 1.0);
  expect_table(make_rope_table(dynamic, 10), {1.0, 0.1}, 1.0);
  expect_table(make_rope_table(dynamic, 3), {1.0, 0.1}, 1.0);
}

TEST(RopeTable, Llama3) {
  // Wavelengths 2 pi 10^(i/2) over L0 = 64: below 16 kept, above 64 divided, between mixed.
  const RopeTable table = make_rope_table({.kind = RopeKind::kLlama3,
                                           .theta = 100,
                                           .rotary_dim = 8,
                                           .factor = 8,
                                           .original_max = 64,
                                           .low_freq = 1,
                                           .high_freq = 4},
                                          0);
  const double f1 = 1 / std::sqrt(10.0), f2 = 0.1, f3 = f1 / 10;
  const auto mixed = [](double f) {
    const double s = (64 * f / (2 * std::numbers::pi) - 1) / 3;
    return (1 - s) * f / 8 + s * f;
  };
  expect_table(table, {1.0, mixed(f1), mixed(f2), f3 / 8}, 1.0);
}

TEST(RopeTable, Yarn) {
  // corr(r) = 8 ln(1024 / (2 pi r)) / (2 ln 100): r = 32 gives 1.41 -> 1, r = 1 gives 4.42 -> 5
  const RopeOptions options{
      .kind = RopeKind::kYarn, .theta = 100, .rotary_dim = 8, .factor = 4, .original_max = 1024};
  const double f1 = 1 / std::sqrt(10.0), f2 = 0.1, f3 = f1 / 10;
  const auto mix = [](double f, double ramp) { return f / 4 * ramp + f * (1 - ramp); };
  expect_table(make_rope_table(options, 0), {1.0, f1, mix(f2, 0.25), mix(f3, 0.5)},
               0.1 * std::log(4.0) + 1);
  RopeOptions given = options;
  given.attention_factor = 1.5;
  EXPECT_EQ(make_rope_table(given, 0).attention_factor, 1.5);
  RopeOptions quotient = options;
  quotient.mscale = 0.707;
  quotient.mscale_all_dim = 1.0;
  EXPECT_NEAR(make_rope_table(quotient, 0).attention_factor,
              (0.0707 * std::log(4.0) + 1) / (0.1 * std::log(4.0) + 1), 1e-15);
}

TEST(RopeTable, LinspaceTakesBothEnds) {
  const RopeOptions options{.kind = RopeKind::kLinspace, .rotary_dim = 8};
  expect_table(make_rope_table(options, 0),
               {1.0, std::pow(10.0, -4.0 / 3), std::pow(10.0, -8.0 / 3), 1e-4}, 1.0);
  expect_table(make_rope_table({.kind = RopeKind::kLinspace, .rotary_dim = 2}, 0), {1.0}, 1.0);
}

TEST(RopeTable, LongRope) {
  RopeOptions options{.kind = RopeKind::kLongRope,
                      .theta = 10000,
                      .rotary_dim = 4,
                      .factor = 4,
                      .original_max = 32,
                      .short_factor = {1.0, 2.0},
                      .long_factor = {4.0, 5.0}};
  const double factor = std::sqrt(1 + std::log(4.0) / std::log(32.0));
  expect_table(make_rope_table(options, 32), {1.0, 0.005}, factor);
  expect_table(make_rope_table(options, 33), {0.25, 0.002}, factor);
  options.factor = 0;
  options.max_position = 64;
  expect_table(make_rope_table(options, 1), {1.0, 0.005},
               std::sqrt(1 + std::log(2.0) / std::log(32.0)));
}

TEST(RopeTable, ScaleFollowsEachSequenceUnlessDeclared) {
  Context ctx({.threads = 1});
  const RopeOptions options{.kind = RopeKind::kLongRope,
                            .rotary_dim = 4,
                            .factor = 4,
                            .original_max = 4,
                            .short_factor = {1.0, 2.0},
                            .long_factor = {4.0, 5.0}};
  SequenceBatch batch;
  batch.add(3, 0);
  batch.add(6, 0);
  const RopeAngles own = rope_angles(ctx, options, batch);
  const auto alone = [&](int64_t length, int64_t scale) {
    return rope_angles(ctx, make_rope_table(options, scale), SequenceBatch::single(length));
  };
  EXPECT_TRUE(test::same_bits(own.cos.slice_rows(0, 3), alone(3, 3).cos));
  EXPECT_TRUE(test::same_bits(own.sin.slice_rows(3, 9), alone(6, 6).sin));
  const RopeAngles declared = rope_angles(ctx, options, batch, 64);
  EXPECT_TRUE(test::same_bits(declared.sin.slice_rows(0, 3), alone(3, 64).sin));
  EXPECT_FALSE(test::same_bits(declared.sin.slice_rows(0, 3), own.sin.slice_rows(0, 3)));
}

// Positions that sequences share are computed once.
TEST(RopeTable, PackedSequencesHaveTheAnglesTheyHaveAlone) {
  Context ctx({.threads = 1, .poison = true});
  const RopeTable table = make_rope_table({.rotary_dim = 8}, 0);
  for (const int64_t last_start : {7, 1000}) {  // shared or too far apart
    SequenceBatch batch;
    const std::vector<std::pair<int64_t, int64_t>> sequences = {
        {5, 3}, {5, 4}, {2, 3}, {6, 3}, {1, last_start}};
    for (const auto& [length, start] : sequences) batch.add(length, start);
    const RopeAngles packed = rope_angles(ctx, table, batch);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto& [length, start] = sequences[s];
      const RopeAngles alone = rope_angles(ctx, table, SequenceBatch::single(length, start));
      const int64_t begin = batch.offsets[s], end = batch.offsets[s + 1];
      EXPECT_TRUE(test::same_bits(packed.cos.slice_rows(begin, end), alone.cos)) << s;
      EXPECT_TRUE(test::same_bits(packed.sin.slice_rows(begin, end), alone.sin)) << s;
    }
  }
}

TEST(RopeTable, RefusesTheImpossible) {
  EXPECT_THROW(make_rope_table({.rotary_dim = 3}, 0), Error);
  EXPECT_THROW(make_rope_table({.kind = RopeKind::kYarn, .rotary_dim = 4}, 0), Error);
  EXPECT_THROW(
      make_rope_table({.kind = RopeKind::kLongRope, .rotary_dim = 4, .original_max = 8}, 9), Error);
  Context ctx({.threads = 1});
  const RopeAngles angles =
      rope_angles(ctx, make_rope_table({.rotary_dim = 32}, 0), SequenceBatch::single(2));
  EXPECT_THROW(rope(ctx, test::randn({2, 16}, 1), 1, angles), Error);
  EXPECT_THROW(rope(ctx, test::randn({3, 32}, 1), 1, angles), Error);
  EXPECT_THROW(rope(ctx, test::randn({2, 65}, 1), 2, angles), Error);
  const Tensor x = test::randn({2, 64}, 1);
  EXPECT_EQ(rope(ctx, x, 2, RopeAngles{}).raw(), x.raw());
}

}  // namespace
}  // namespace braid
