// Goal: the scan equals its reference in all forms, with gradients; a token's bits do not depend on
// cuts, neighbours or threads. Method: naive float64 recurrence, complex step on it.

#include <gtest/gtest.h>

#include <span>
#include <string>

#include "braid/core/tape.h"
#include "braid/ops/ssd/cases.h"
#include "braid/ops/ssd/reference.h"
#include "braid/ops/ssd/ssd.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

using test::kForms;
using test::make_context;

SequenceBatch batch_of(const std::vector<int64_t>& lengths, int64_t start = 0) {
  SequenceBatch batch;
  for (const int64_t length : lengths) batch.add(length, start);
  return batch;
}

struct Problem {
  SsdInputs in;
  Tensor initial;
  SequenceBatch batch;
  SsdOptions options;
};

Problem make_problem(const SsdCase& c, uint64_t seed, int64_t start = 0) {
  const SsdOptions& o = c.options;
  Problem p{.batch = batch_of(c.lengths, start), .options = o};
  const int64_t tokens = p.batch.tokens(), d = o.heads * o.head_dim, gn = o.groups * o.state;
  // One wide tensor, as a projection gives it: x, b, c and dt are column slices of it.
  const Tensor all = test::randn({tokens, d + 2 * gn + o.heads}, seed);
  p.in.x = all.slice_columns(0, d);
  p.in.b = all.slice_columns(d, d + gn);
  p.in.c = all.slice_columns(d + gn, d + 2 * gn);
  p.in.dt_raw = all.slice_columns(d + 2 * gn, d + 2 * gn + o.heads);
  p.in.dt_bias = test::randn({o.heads}, seed + 1);
  p.in.a_log = test::randn({o.heads}, seed + 2);
  p.in.d = test::randn({o.heads}, seed + 3);
  p.initial = test::randn({p.batch.sequences(), o.heads, o.head_dim, o.state}, seed + 4);
  return p;
}

Tensor rows(const Tensor& x, int64_t begin, int64_t end) { return x.slice_rows(begin, end); }

SsdInputs slice(const SsdInputs& in, int64_t begin, int64_t end) {
  return {.x = rows(in.x, begin, end),
          .b = rows(in.b, begin, end),
          .c = rows(in.c, begin, end),
          .dt_raw = rows(in.dt_raw, begin, end),
          .dt_bias = in.dt_bias,
          .a_log = in.a_log,
          .d = in.d};
}

// Sequence s of a problem for the reference.
template <class T>
reference::Ssd<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const SsdInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  const SsdOptions& o = p.options;
  const auto get = [](const Tensor& x) {
    return x.defined() ? test::as<T>(test::values(x)) : std::vector<T>{};
  };
  return {.tokens = p.batch.length(s),
          .heads = o.heads,
          .head_dim = o.head_dim,
          .groups = o.groups,
          .state = o.state,
          .dt_min = o.dt_min,
          .dt_max = o.dt_max,
          .x = get(in.x),
          .b = get(in.b),
          .c = get(in.c),
          .dt_raw = get(in.dt_raw),
          .dt_bias = get(in.dt_bias),
          .a_log = get(in.a_log),
          .d = get(in.d),
          .initial = p.initial.defined() ? get(rows(p.initial, s, s + 1)) : std::vector<T>{}};
}

auto reference_of_all(const Problem& p) {
  return test::reference_of_batch(
      p.batch, [&](int64_t s) { return reference::ssd(reference_of<double>(p, s)); });
}

void check_forms_against_reference() {
  uint64_t seed = 1;
  for (const SsdCase& c : ssd_test_cases()) {
    for (const bool bare : {false, true}) {
      Problem p = make_problem(c, seed += 10);
      if (bare) p.initial = p.in.d = Tensor();
      const auto want = reference_of_all(p);
      const double tol = test::tolerance(DType::kF32, p.batch.tokens() + p.options.state);
      test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
        return ssd(ctx, p.in, p.initial, p.batch, p.options);
      });
    }
  }
}

TEST(Ssd, MatchesTheReferenceInEveryForm) { test::on_every_target(check_forms_against_reference); }

TEST(Ssd, AChunkGridThatStartsInsideASequence) {
  for (const SsdCase& c : ssd_test_cases()) {
    const Problem p = make_problem(c, 77, /*start=*/37);
    const auto want = reference_of_all(p);
    Context ctx = make_context(2, Form::kChunked);
    const SsdResult got = ssd(ctx, p.in, p.initial, p.batch, p.options);
    test::expect_close(got.y, want.y,
                       test::tolerance(DType::kF32, p.batch.tokens() + p.options.state), c.name);
  }
}

TEST(Ssd, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const SsdCase& c : ssd_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return ssd(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return ssd_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

TEST(Ssd, StepsArePreciseAtBothEndsOfTheSoftplus) {
  const SsdOptions o{.heads = 1, .head_dim = 1, .groups = 1, .state = 1};
  for (const float raw : {-80.0f, -50.0f, -20.0f, -1e-3f, 0.0f, 1e-3f, 3.0f, 20.0f, 80.0f}) {
    Problem p = make_problem({"", {1}, o}, 3);
    p.initial = p.in.d = Tensor();
    p.in.dt_raw = host_tensor<float>({raw}, {1, 1});
    p.in.dt_bias = host_tensor<float>({0.0f}, {1});
    Context ctx = make_context();
    const SsdResult got = ssd(ctx, p.in, {}, p.batch, p.options);
    test::expect_close(got.final_state, reference_of_all(p).final_state,
                       test::tolerance(DType::kF32, 1), "softplus");
  }
}

// Gradients of <y, dy> + <final, d_final> with respect to every input.
constexpr const char* kNames[] = {"x", "b", "c", "dt_raw", "dt_bias", "a_log", "d", "initial"};

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  Tensor* const leaves[] = {&p.in.x,       &p.in.b,     &p.in.c, &p.in.dt_raw,
                            &p.in.dt_bias, &p.in.a_log, &p.in.d, &p.initial};
  return test::tape_gradients(base, leaves, dy, d_final, [&](Context& ctx) {
    return ssd(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, int which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.x,       &in.b,     &in.c, &in.dt_raw,
                                          &in.dt_bias, &in.a_log, &in.d, &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final, [&] { return reference::ssd(in); });
}

void check_gradients() {
  const SsdOptions small{.heads = 2, .head_dim = 3, .groups = 2, .state = 5, .chunk = 4};
  const SsdOptions shared{.heads = 4, .head_dim = 2, .groups = 2, .state = 3, .chunk = 8};
  SsdOptions clamped = small;
  clamped.dt_min = 0.3f;
  clamped.dt_max = 1.2f;
  const SsdCase cases[] = {{"short", {1}, small},
                           {"odd", {19}, small},
                           {"shared", {9}, shared},
                           {"clamped", {11}, clamped}};
  for (const SsdCase& c : cases) {
    for (const Form form : kForms) {
      const Problem p = make_problem(c, 21, /*start=*/3);
      const Tensor dy = test::randn(p.in.x.shape(), 31),
                   d_final = test::randn(p.initial.shape(), 32);
      Context ctx = make_context(2, form);
      const std::vector<Tensor> got = gradients_of(ctx, p, dy, d_final);
      for (int i = 0; i < 8; ++i) {
        const std::string what = std::string(c.name) + " d" + kNames[i];
        // Terms in the sum: parameters gather from all tokens and the whole state of a head.
        const bool parameter = 4 <= i && i < 7;
        const int64_t terms =
            parameter ? p.batch.tokens() * c.options.head_dim * c.options.state : 64;
        test::expect_close(got[static_cast<size_t>(i)], complex_gradient(p, i, dy, d_final),
                           test::tolerance(DType::kF32, terms), what.c_str());
      }
    }
  }
}

TEST(Ssd, GradientsMatchComplexStep) { test::on_every_target(check_gradients); }

TEST(Ssd, GradientsOfPackedSequencesAreThoseOfEachAndOfBothForms) {
  const SsdCase cases[] = {
      {"packed", {70, 0, 1, 65}, {.heads = 4, .head_dim = 20, .groups = 2, .state = 40}},
      {"even", {200, 128}, {.heads = 2, .head_dim = 32, .groups = 1, .state = 64}}};
  for (const SsdCase& c : cases) {
    const Problem p = make_problem(c, 41);
    const Tensor dy = test::randn(p.in.x.shape(), 51), d_final = test::randn(p.initial.shape(), 52);
    Context recurrent = make_context(1, Form::kRecurrent);
    const std::vector<Tensor> want = gradients_of(recurrent, p, dy, d_final);
    for (const Form form : kForms) {
      Context ctx = make_context(3, form);
      const std::vector<Tensor> got = gradients_of(ctx, p, dy, d_final);
      for (size_t i = 0; i < 8; ++i) {
        const std::string what = std::string(c.name) + " d" + kNames[i];
        if (form == Form::kRecurrent) {
          EXPECT_TRUE(test::same_bits(got[i], want[i])) << what;
        } else {
          test::expect_close(got[i], want[i], test::tolerance(DType::kF32, 200), what.c_str());
        }
      }
    }
    SCOPED_TRACE(c.name);
    test::expect_gradients_of_each(
        p.batch, want, {0, 1, 2, 3}, [&](int64_t s, int64_t begin, int64_t end) {
          const Problem alone{slice(p.in, begin, end), rows(p.initial, s, s + 1),
                              SequenceBatch::single(end - begin), p.options};
          return gradients_of(recurrent, alone, rows(dy, begin, end), rows(d_final, s, s + 1));
        });
  }
}

TEST(Ssd, RefusesWrongShapes) {
  Problem p = make_problem({"", {4}, {.heads = 2, .head_dim = 3, .groups = 1, .state = 5}}, 1);
  Context ctx = make_context();
  SsdInputs wrong = p.in;
  wrong.b = wrong.x;
  EXPECT_THROW(ssd(ctx, wrong, {}, p.batch, p.options), Error);
  EXPECT_THROW(ssd_in_place(ctx, p.in, {}, p.batch, p.options), Error);
  SsdOptions odd = p.options;
  odd.groups = 3;
  EXPECT_THROW(ssd(ctx, p.in, {}, p.batch, odd), Error);
}

}  // namespace
}  // namespace braid
