// Goal: the recurrence equals its reference in all forms, with gradients; a token's bits do not
// depend on cuts, neighbours or threads. Method: naive float64 recurrence, complex step on it.

#include <gtest/gtest.h>

#include <span>
#include <string>

#include "braid/core/tape.h"
#include "braid/ops/wkv7/cases.h"
#include "braid/ops/wkv7/reference.h"
#include "braid/ops/wkv7/wkv7.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

using test::kForms;
using test::make_context;

struct Problem {
  Wkv7Inputs in;
  Tensor initial;
  int64_t heads, head_dim;
  SequenceBatch batch;
};

// As the mixer makes them: ln w in (-0.61, 0), a and b the two halves of a damped reflection.
Problem make_problem(const Wkv7Case& c, uint64_t seed, int64_t start = 0) {
  Problem p{.in = {}, .initial = {}, .heads = c.heads, .head_dim = c.head_dim, .batch = {}};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const Shape shape{p.batch.tokens(), c.heads * c.head_dim};
  p.in.r = test::randn(shape, seed);
  p.in.log_decay = test::randn(shape, seed + 1);
  for (int64_t i = 0; i < shape.count(); ++i) {
    float& value = p.in.log_decay.f32()[i];
    value = -0.6065f / (1 + std::exp(-2 * value));
  }
  p.in.k = test::randn(shape, seed + 2);
  p.in.v = test::randn(shape, seed + 3);
  p.in.a = test::randn(shape, seed + 4);
  p.in.b = test::randn(shape, seed + 5);
  for (int64_t i = 0; i < shape.count(); i += c.head_dim) {
    double squares = 0;
    for (int64_t j = 0; j < c.head_dim; ++j) squares += std::pow(p.in.a.f32()[i + j], 2);
    for (int64_t j = 0; j < c.head_dim; ++j) {
      float& a = p.in.a.f32()[i + j];
      a /= -static_cast<float>(std::sqrt(squares));
      float& b = p.in.b.f32()[i + j];
      b = -a / (1 + std::exp(-b));
    }
  }
  p.initial = test::randn({p.batch.sequences(), c.heads, c.head_dim, c.head_dim}, seed + 6);
  return p;
}

Wkv7Inputs slice(const Wkv7Inputs& in, int64_t begin, int64_t end) {
  const auto rows = [&](const Tensor& x) { return x.slice_rows(begin, end); };
  return {rows(in.r), rows(in.log_decay), rows(in.k), rows(in.v), rows(in.a), rows(in.b)};
}

template <class T>
std::vector<T> get(const Tensor& x) {
  return test::as<T>(test::values(x));
}

// Sequence s of a problem for the reference.
template <class T>
reference::Wkv7<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const Wkv7Inputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  return {p.batch.length(s),
          p.heads,
          p.head_dim,
          get<T>(in.r),
          get<T>(in.log_decay),
          get<T>(in.k),
          get<T>(in.v),
          get<T>(in.a),
          get<T>(in.b),
          p.initial.defined() ? get<T>(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

auto reference_of_all(const Problem& p) {
  return test::reference_of_batch(
      p.batch, [&](int64_t s) { return reference::wkv7(reference_of<double>(p, s)); });
}

void check_forms_against_reference() {
  uint64_t seed = 1;
  for (const Wkv7Case& c : wkv7_test_cases()) {
    for (const bool bare : {false, true}) {
      Problem p = make_problem(c, seed += 10, bare ? 0 : 37);
      if (bare) p.initial = Tensor();
      const auto want = reference_of_all(p);
      const double tol = test::tolerance(DType::kF32, p.batch.tokens() + p.head_dim);
      test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
        return wkv7(ctx, p.in, p.initial, p.heads, p.batch);
      });
    }
  }
}

TEST(Wkv7, MatchesTheReferenceInEveryForm) { test::on_every_target(check_forms_against_reference); }

TEST(Wkv7, StrongDecayStaysFinite) {
  Problem p = make_problem({"", {40}, 1, 16}, 9);
  for (int64_t i = 0; i < p.in.log_decay.count(); ++i) {
    p.in.log_decay.f32()[i] = i % 3 == 0 ? -8.0f : i % 3 == 1 ? -1e-6f : -2.0f;
  }
  const auto want = reference_of_all(p);
  for (const Form form : kForms) {
    Context ctx = make_context(1, form);
    const Wkv7Result got = wkv7(ctx, p.in, p.initial, p.heads, p.batch);
    // ln w is a sum of up to 16 terms of size 8 in the chunked form.
    test::expect_close(got.y, want.y, test::tolerance(DType::kF32, 40 * 64), "strong decay");
  }
}

TEST(Wkv7, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const Wkv7Case& c : wkv7_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return wkv7(ctx, p.in, p.initial, p.heads, p.batch); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return wkv7_in_place(ctx, slice(p.in, begin, end), states, p.heads, single);
        },
        c.name);
  }
}

constexpr const char* kNames[] = {"r", "log_decay", "k", "v", "a", "b", "initial"};

// Gradients of <y, dy> + <final, d_final> with respect to every input.
std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  Tensor* const leaves[] = {&p.in.r, &p.in.log_decay, &p.in.k,   &p.in.v,
                            &p.in.a, &p.in.b,         &p.initial};
  return test::tape_gradients(base, leaves, dy, d_final, [&](Context& ctx) {
    return wkv7(ctx, p.in, p.initial, p.heads, p.batch);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  std::vector<double> all;
  for (int64_t s = 0; s < p.batch.sequences(); ++s) {
    const auto i = static_cast<size_t>(s);
    auto in = reference_of<Complex>(p, s);
    std::vector<Complex>* const fields[] = {&in.r, &in.log_decay, &in.k,    &in.v,
                                            &in.a, &in.b,         &in.state};
    std::vector<Complex>& field = *fields[which];
    const auto one =
        test::reference_gradient(field, dy.slice_rows(p.batch.offsets[i], p.batch.offsets[i + 1]),
                                 d_final.slice_rows(s, s + 1), [&] { return reference::wkv7(in); });
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

void check_gradients() {
  for (const Wkv7Case& c : {Wkv7Case{"short", {1}, 1, 8}, Wkv7Case{"cells", {19, 0, 3}, 2, 8},
                            Wkv7Case{"odd", {21}, 1, 24}}) {
    const Problem p = make_problem(c, 21, /*start=*/3);
    const Tensor dy = test::randn(p.in.r.shape(), 31), d_final = test::randn(p.initial.shape(), 32);
    for (size_t i = 0; i < std::size(kNames); ++i) {
      const std::vector<double> want = complex_gradient(p, i, dy, d_final);
      for (const Form form : kForms) {
        Context ctx = make_context(2, form);
        const std::string what = std::string(c.name) + " d" + kNames[i];
        const int64_t terms = p.batch.tokens() * c.head_dim;
        test::expect_close(gradients_of(ctx, p, dy, d_final)[i], want,
                           test::tolerance(DType::kF32, terms), what.c_str());
      }
    }
  }
}

TEST(Wkv7, GradientsMatchComplexStep) { test::on_every_target(check_gradients); }

TEST(Wkv7, GradientsOfTheFormsAgreeOnLongSequences) {
  const Problem p = make_problem({"", {200, 61}, 2, 64}, 41);
  const Tensor dy = test::randn(p.in.r.shape(), 42), d_final = test::randn(p.initial.shape(), 43);
  Context recurrent = make_context(2, Form::kRecurrent), chunked = make_context(3, Form::kChunked);
  const auto want = gradients_of(recurrent, p, dy, d_final);
  const auto got = gradients_of(chunked, p, dy, d_final);
  for (size_t i = 0; i < want.size(); ++i) {
    test::expect_close(got[i], want[i], test::tolerance(DType::kF32, 200 * 64), kNames[i]);
  }
}

// Gradients of a large batch are written past the caches.
void check_large_batch() {
  constexpr int64_t kLength = 300, kSequences = 6;
  const Problem p = make_problem({"", std::vector<int64_t>(kSequences, kLength), 4, 32}, 61);
  const Tensor dy = test::randn(p.in.r.shape(), 62), d_final = test::randn(p.initial.shape(), 63);
  Context ctx = make_context(3);
  const auto together = gradients_of(ctx, p, dy, d_final);
  for (int64_t s = 0; s < kSequences; ++s) {
    const int64_t begin = s * kLength, end = begin + kLength;
    Problem one = p;
    one.in = slice(p.in, begin, end);
    one.initial = p.initial.slice_rows(s, s + 1);
    one.batch = SequenceBatch::single(kLength);
    const auto alone =
        gradients_of(ctx, one, dy.slice_rows(begin, end), d_final.slice_rows(s, s + 1));
    for (size_t i = 0; i + 1 < alone.size(); ++i) {
      EXPECT_TRUE(test::same_bits(together[i].slice_rows(begin, end), alone[i])) << kNames[i];
    }
    EXPECT_TRUE(test::same_bits(together.back().slice_rows(s, s + 1), alone.back()));
  }
}

TEST(Wkv7, GradientsOfALargeBatchHaveTheBitsOfItsSequences) {
  test::on_every_target(check_large_batch);
}

TEST(Wkv7, AMissingGradientIsZero) {
  Problem p = make_problem({"", {18}, 1, 8}, 51);
  const Tensor zero = host_tensor(std::vector<float>(18 * 8), {18, 8});
  const Tensor d_final = test::randn(p.initial.shape(), 52);
  Context ctx = make_context();
  const auto want = gradients_of(ctx, p, zero, d_final);
  Tape tape;
  Context taped = ctx.with_tape(&tape);
  tape.watch(p.in.k);
  const Wkv7Result out = wkv7(taped, p.in, p.initial, p.heads, p.batch);
  tape.backward(ctx, {out.final_state}, {d_final});
  EXPECT_TRUE(test::same_bits(tape.grad(p.in.k), want[2]));
}

TEST(Wkv7, RefusesWrongShapes) {
  const Problem p = make_problem({"", {4}, 2, 8}, 1);
  Context ctx = make_context();
  EXPECT_THROW(wkv7(ctx, p.in, {}, 3, p.batch), Error);
  EXPECT_THROW(wkv7(ctx, p.in, {}, 4, p.batch), Error);  // heads of 4
  EXPECT_THROW(wkv7(ctx, p.in, {}, 2, SequenceBatch::single(5)), Error);
  EXPECT_THROW(wkv7(ctx, p.in, p.in.r, 2, p.batch), Error);
  EXPECT_THROW(wkv7_in_place(ctx, p.in, {}, 2, p.batch), Error);
  Tape tape;
  Context taped = ctx.with_tape(&tape);
  std::vector<float> state(2 * 8 * 8);
  float* const states[] = {state.data()};
  EXPECT_THROW(wkv7_in_place(taped, p.in, states, 2, p.batch), Error);
}

}  // namespace
}  // namespace braid
