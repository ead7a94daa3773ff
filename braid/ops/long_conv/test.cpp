// Goal: every form of the long convolution equals its reference; gradients are exact; the blocked
// form has the same bits for every cut and number of threads, from fresh taps and from prepared
// ones. Method: naive float64 loop, complex step on it.

#include <gtest/gtest.h>

#include <vector>

#include "braid/core/tape.h"
#include "braid/ops/long_conv/cases.h"
#include "braid/ops/long_conv/kernels.h"
#include "braid/ops/long_conv/long_conv.h"
#include "braid/ops/long_conv/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

struct Problem {
  Tensor u, k, d;
  SequenceBatch batch;
};

Problem make_problem(const LongConvCase& c, uint64_t seed) {
  Problem p;
  for (const int64_t length : c.lengths) p.batch.add(length);
  p.u = randn({p.batch.tokens(), c.channels + 3}, seed).slice_columns(2, 2 + c.channels);
  p.k = randn({c.taps, c.channels}, seed + 1);
  p.d = randn({c.channels}, seed + 2);
  return p;
}

template <class T>
std::vector<T> reference_of(const Problem& p, const std::vector<T>& u, const std::vector<T>& k,
                            const std::vector<T>& d) {
  std::vector<T> y;
  const int64_t C = p.d.count();
  for (int64_t s = 0; s < p.batch.sequences(); ++s) {
    const auto i = static_cast<size_t>(s);
    const auto part = reference::long_conv(
        p.batch.length(s), C,
        std::vector<T>(u.begin() + p.batch.offsets[i] * C, u.begin() + p.batch.offsets[i + 1] * C),
        k, d);
    y.insert(y.end(), part.begin(), part.end());
  }
  return y;
}

// A state's memory, as the pages of a growing slot would be.
struct Carried {
  explicit Carried(int64_t tokens, int64_t channels)
      : block(static_cast<size_t>(2 * kLongConvBlock * channels), NAN) {
    for (int64_t t = 0; t < tokens; t += kPageTokens) {
      storage.emplace_back(static_cast<size_t>(2 * kPageTokens * channels), NAN);
    }
    for (auto& page : storage) pages.push_back(page.data());
  }
  LongConvState view() {
    return {.block = block.data(),
            .spectra = {.pages = pages.data(), .count = static_cast<int64_t>(pages.size())}};
  }
  std::vector<float> block;
  std::vector<std::vector<float>> storage;
  std::vector<void*> pages;
};

TEST(LongConv, EveryFormMatchesTheReference) {
  uint64_t seed = 1;
  Context ctx({.threads = 2, .poison = true});
  on_every_target([&] {
    for (const LongConvCase& c : long_conv_test_cases()) {
      const Problem p = make_problem(c, seed += 10);
      const auto want = reference_of(p, values(p.u), values(p.k), values(p.d));
      const double tol = tolerance(DType::kF32, std::min(c.taps, c.lengths[0]));
      for (const Form form : {Form::kAuto, Form::kChunked, Form::kParallel, Form::kRecurrent}) {
        Context other = ctx.with_form(form);
        SCOPED_TRACE(fmt::format("{} tokens, {} channels, {} taps, form {}", c.lengths[0],
                                 c.channels, c.taps, static_cast<int>(form)));
        expect_close(long_conv(other, p.u, p.k, p.d, p.batch), want, tol, "y");
      }
    }
  });
}

TEST(LongConv, BitsDependOnNeitherCutsNorThreads) {
  Context one({.threads = 1, .poison = true}), three({.threads = 3, .poison = true});
  for (const LongConvCase& c : long_conv_test_cases()) {
    const Problem p = make_problem(c, 7);
    const LongConvFilter filter = LongConvFilter::make(three, p.k, p.d);
    const Tensor want = long_conv(one, p.u, p.k, p.d, p.batch);
    EXPECT_TRUE(same_bits(long_conv(three, p.u, p.k, p.d, p.batch), want));
    EXPECT_TRUE(same_bits(long_conv(three, p.u, filter, p.batch), want));
    const int64_t T = c.lengths[0];
    for (const int64_t piece : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{100}, T}) {
      Carried state(T, c.channels);
      for (int64_t t = 0; t < T; t += piece) {
        const int64_t end = std::min(T, t + piece);
        const LongConvState states[] = {state.view()};
        const Tensor part = long_conv(three, p.u.slice_rows(t, end), filter,
                                      SequenceBatch::single(end - t, t), states);
        ASSERT_TRUE(same_bits(part, want.slice_rows(t, end))) << "piece " << piece << " at " << t;
      }
    }
  }
}

// Taps beyond the last token change nothing, not even bits: a filter may be made as long as needed.
TEST(LongConv, UnusedTapsChangeNoBits) {
  Context ctx({.threads = 2, .poison = true});
  const Problem p = make_problem({{150}, 9, 400}, 3);
  const Tensor want = long_conv(ctx, p.u, p.k, p.d, p.batch);
  const Tensor rounded_up = ctx.to_host(p.k.slice_rows(0, 192));
  EXPECT_TRUE(same_bits(long_conv(ctx, p.u, rounded_up, p.d, p.batch), want));
}

std::vector<Tensor> gradients(Context& ctx, Problem p, const Tensor& dy) {
  Tape tape;
  for (Tensor* leaf : {&p.u, &p.k, &p.d}) tape.watch(*leaf);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = long_conv(taped, p.u, p.k, p.d, p.batch);
  tape.backward(ctx, {y}, {dy});
  return {tape.grad(p.u), tape.grad(p.k), tape.grad(p.d)};
}

TEST(LongConv, GradientsMatchComplexStep) {
  Context ctx({.threads = 2, .poison = true});
  for (const LongConvCase& c : std::vector<LongConvCase>{
           {{1}, 3, 1}, {{9}, 2, 9}, {{5, 0, 8}, 3, 6}, {{70, 3, 66, 66}, 2, 80}}) {
    const Problem p = make_problem(c, 11);
    const Tensor dy = randn({p.batch.tokens(), c.channels + 1}, 12).slice_columns(0, c.channels);
    const auto got = gradients(ctx, p, dy);
    std::vector<Complex> fields[] = {as<Complex>(values(p.u)), as<Complex>(values(p.k)),
                                     as<Complex>(values(p.d))};
    const Tensor* leaves[] = {&p.u, &p.k, &p.d};
    const char* names[] = {"du", "dk", "dd"};
    for (size_t which = 0; which < 3; ++which) {
      auto z = fields;
      const auto saved = fields[which];
      const auto want = complex_step(values(*leaves[which]), [&](const std::vector<Complex>& x) {
        z[which] = x;
        return dot(reference_of(p, z[0], z[1], z[2]), values(dy));
      });
      fields[which] = saved;
      expect_close(got[which], want, tolerance(DType::kF32, p.batch.tokens()), names[which]);
    }
  }
}

TEST(LongConv, GradientsDoNotDependOnThreads) {
  Context one({.threads = 1}), three({.threads = 3});
  const Problem p = make_problem({{40, 3, 80}, 70, 64}, 17);
  const Tensor dy = randn(p.u.shape(), 18);
  const auto want = gradients(one, p, dy), got = gradients(three, p, dy);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(same_bits(got[i], want[i])) << i;
}

TEST(LongConv, RefusesWhatDoesNotFit) {
  Context ctx;
  const Problem p = make_problem({{4}, 6, 4}, 1);
  EXPECT_THROW(long_conv(ctx, p.u, p.d, p.d, p.batch), Error);
  EXPECT_THROW(long_conv(ctx, p.u, p.k, p.k, p.batch), Error);
  EXPECT_THROW(long_conv(ctx, p.u, p.k, p.d, SequenceBatch::single(5)), Error);
  const LongConvFilter filter = LongConvFilter::make(ctx, p.k, p.d);
  EXPECT_THROW(long_conv(ctx, p.u, filter, p.batch, {}), Error);
  Carried state(0, 6);
  const LongConvState states[] = {state.view()};
  EXPECT_THROW(long_conv(ctx, p.u, filter, p.batch, states), Error);
  Tape tape;
  Tensor u = p.u;
  tape.watch(u);
  Context taped = ctx.with_tape(&tape);
  EXPECT_THROW(long_conv(taped, u, filter, p.batch), Error);
}

}  // namespace
}  // namespace braid
