// Goal: the shift equals its reference, with gradients and state; a token's bits do not depend on
// cuts or threads. Method: naive float64 loop, complex step on it.

#include <gtest/gtest.h>

#include "braid/core/tape.h"
#include "braid/ops/token_shift/cases.h"
#include "braid/ops/token_shift/reference.h"
#include "braid/ops/token_shift/token_shift.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

struct Problem {
  Tensor x, initial;
  std::vector<Tensor> mu;
  SequenceBatch batch;
};

Problem make_problem(const TokenShiftCase& c, uint64_t seed) {
  Problem p;
  for (const int64_t length : c.lengths) p.batch.add(length);
  p.x = test::randn({p.batch.tokens(), c.width + 3}, seed).slice_columns(1, 1 + c.width);
  p.initial = test::randn({p.batch.sequences(), c.width}, seed + 1);
  for (int64_t m = 0; m < c.outputs; ++m) {
    p.mu.push_back(test::randn({c.width}, seed + 2 + static_cast<uint64_t>(m)));
  }
  return p;
}

Tensor rows_of(const Tensor& x, const SequenceBatch& batch, int64_t s) {
  const auto i = static_cast<size_t>(s);
  return x.slice_rows(batch.offsets[i], batch.offsets[i + 1]);
}

template <class T>
std::vector<T> get(const Tensor& x) {
  return test::as<T>(test::values(x));
}

void check_against_reference() {
  Context ctx({.threads = 2, .poison = true});
  for (const TokenShiftCase& c : token_shift_test_cases()) {
    const Problem p = make_problem(c, 1);
    const TokenShiftResult got = token_shift(ctx, p.x, p.mu, p.initial, p.batch);
    for (size_t m = 0; m < p.mu.size(); ++m) {
      std::vector<double> want;
      for (int64_t s = 0; s < p.batch.sequences(); ++s) {
        const auto y =
            reference::token_shift(get<double>(rows_of(p.x, p.batch, s)), get<double>(p.mu[m]),
                                   get<double>(p.initial.slice_rows(s, s + 1)));
        want.insert(want.end(), y.begin(), y.end());
      }
      test::expect_close(got.y[m], want, test::tolerance(DType::kF32, 1), "y");
    }
    for (int64_t s = 0; s < p.batch.sequences(); ++s) {
      const Tensor x = rows_of(p.x, p.batch, s);
      const Tensor want =
          x.rows() > 0 ? x.slice_rows(x.rows() - 1, x.rows()) : p.initial.slice_rows(s, s + 1);
      EXPECT_TRUE(test::same_bits(got.final_state.slice_rows(s, s + 1), want));
    }
  }
}

TEST(TokenShift, MatchesTheReference) { test::on_every_target(check_against_reference); }

TEST(TokenShift, BitsDependOnNeitherCutsNorThreads) {
  Context one({.threads = 1}), three({.threads = 3, .poison = true});
  for (const TokenShiftCase& c : token_shift_test_cases()) {
    const Problem p = make_problem(c, 7);
    const TokenShiftResult want = token_shift(one, p.x, p.mu, p.initial, p.batch);
    EXPECT_TRUE(test::same_bits(token_shift(three, p.x, p.mu, p.initial, p.batch).y[0], want.y[0]));
    for (int64_t s = 0; s < p.batch.sequences(); ++s) {
      const Tensor x = rows_of(p.x, p.batch, s), y = rows_of(want.y.back(), p.batch, s);
      for (const int64_t piece : {1, 3}) {
        std::vector<float> state(p.initial.f32() + s * c.width,
                                 p.initial.f32() + (s + 1) * c.width);
        float* const states[] = {state.data()};
        for (int64_t t = 0; t < x.rows(); t += piece) {
          const int64_t end = std::min(x.rows(), t + piece);
          const auto part = token_shift_in_place(three, x.slice_rows(t, end), p.mu, states,
                                                 SequenceBatch::single(end - t, t));
          ASSERT_TRUE(test::same_bits(part.back(), y.slice_rows(t, end)));
        }
      }
    }
  }
}

TEST(TokenShift, GradientsMatchComplexStep) {
  Context ctx({.threads = 3, .poison = true});
  for (const TokenShiftCase& c : {TokenShiftCase{{1}, 3, 1}, TokenShiftCase{{3, 0, 40}, 5, 2},
                                  TokenShiftCase{{7, 2}, 17, 6}}) {
    Problem p = make_problem(c, 11);
    Tape tape;
    std::vector<Tensor*> leaves{&p.x, &p.initial};
    for (Tensor& one : p.mu) leaves.push_back(&one);
    for (Tensor* leaf : leaves) tape.watch(*leaf);
    Context taped = ctx.with_tape(&tape);
    TokenShiftResult out = token_shift(taped, p.x, p.mu, p.initial, p.batch);
    std::vector<Tensor> outputs = out.y, dys;
    outputs.push_back(out.final_state);
    for (const Tensor& y : outputs) dys.push_back(test::randn(y.shape(), 50 + dys.size()));
    tape.backward(ctx, outputs, dys);

    for (size_t which = 0; which < leaves.size(); ++which) {
      std::vector<std::vector<Complex>> fields;
      for (const Tensor* leaf : leaves) fields.push_back(get<Complex>(*leaf));
      const auto width = static_cast<size_t>(c.width);
      const auto loss = [&](const std::vector<Complex>& z) {
        fields[which] = z;
        Complex sum = 0;
        for (int64_t s = 0; s < p.batch.sequences(); ++s) {
          const auto i = static_cast<size_t>(s);
          const auto part = [&](const std::vector<Complex>& v, int64_t begin, int64_t end) {
            return std::vector<Complex>(v.begin() + begin * c.width, v.begin() + end * c.width);
          };
          const auto x = part(fields[0], p.batch.offsets[i], p.batch.offsets[i + 1]);
          const auto before = part(fields[1], s, s + 1);
          for (size_t m = 0; m < p.mu.size(); ++m) {
            sum += test::dot(reference::token_shift(x, fields[2 + m], before),
                             test::values(rows_of(dys[m], p.batch, s)));
          }
          const std::vector<Complex> last =
              x.empty() ? before
                        : std::vector<Complex>(x.end() - static_cast<ptrdiff_t>(width), x.end());
          sum += test::dot(last, test::values(dys.back().slice_rows(s, s + 1)));
        }
        return sum;
      };
      const auto want = test::complex_step(test::values(*leaves[which]), loss);
      test::expect_close(tape.grad(*leaves[which]), want,
                         test::tolerance(DType::kF32, p.batch.tokens() + c.outputs), "gradient");
    }
  }
}

TEST(TokenShift, RefusesWrongShapes) {
  Context ctx;
  const Problem p = make_problem({{4}, 6, 2}, 1);
  EXPECT_THROW(token_shift(ctx, p.x, {}, {}, p.batch), Error);
  EXPECT_THROW(token_shift(ctx, p.x, p.mu, {}, SequenceBatch::single(5)), Error);
  EXPECT_THROW(token_shift(ctx, p.x, p.mu, p.x, p.batch), Error);
  const std::vector<Tensor> wide{test::randn({7}, 1)};
  EXPECT_THROW(token_shift(ctx, p.x, wide, {}, p.batch), Error);
  EXPECT_THROW(token_shift_in_place(ctx, p.x, p.mu, {}, p.batch), Error);
}

}  // namespace
}  // namespace braid
