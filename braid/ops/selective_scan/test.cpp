// Goal: the scan equals its reference in all forms, with gradients; a token's bits do not depend on
// cuts, neighbours or threads; a selective scan whose step, B and C do not vary is the invariant
// one. Method: naive float64 recurrence, complex step on it.

#include <gtest/gtest.h>

#include <span>
#include <string>

#include "braid/core/tape.h"
#include "braid/ops/selective_scan/cases.h"
#include "braid/ops/selective_scan/reference.h"
#include "braid/ops/selective_scan/selective_scan.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

using test::kForms;
using test::make_context;

struct Problem {
  SelectiveScanInputs in;
  Tensor initial;
  SequenceBatch batch;
  SelectiveScanOptions options;
  int64_t state = 0;
};

Problem make_problem(const SelectiveScanCase& c, uint64_t seed, int64_t start = 0) {
  Problem p{.options = {.chunk = c.chunk}, .state = c.state};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const int64_t tokens = p.batch.tokens(), E = c.channels, N = c.state;
  // Wide tensors, as projections give them: x and z, b and c are column slices.
  const Tensor xz = test::randn({tokens, 2 * E}, seed), bc = test::randn({tokens, 2 * N}, seed + 1);
  p.in.x = xz.slice_columns(0, E);
  p.in.z = xz.slice_columns(E, 2 * E);
  if (c.invariant) {
    p.in.b = test::randn({E, N}, seed + 1);
    p.in.c = test::randn({E, N}, seed + 2);
  } else {
    p.in.dt_raw = test::randn({tokens, E + 1}, seed + 2).slice_columns(1, E + 1);
    p.in.b = bc.slice_columns(0, N);
    p.in.c = bc.slice_columns(N, 2 * N);
  }
  p.in.dt_bias = test::randn({E}, seed + 3);
  p.in.a_log = test::randn({E, N}, seed + 4);
  p.in.d = test::randn({E}, seed + 5);
  p.initial = test::randn({p.batch.sequences(), N, E}, seed + 6);
  return p;
}

SelectiveScanInputs slice(const SelectiveScanInputs& in, int64_t begin, int64_t end) {
  SelectiveScanInputs out = in;
  for (Tensor* x : {&out.x, &out.dt_raw, &out.z}) {
    if (x->defined()) *x = x->slice_rows(begin, end);
  }
  if (!in.dt_raw.defined()) return out;
  out.b = in.b.slice_rows(begin, end);
  out.c = in.c.slice_rows(begin, end);
  return out;
}

// Sequence s of a problem for the reference.
template <class T>
reference::SelectiveScan<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const SelectiveScanInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  const auto get = [](const Tensor& x) {
    return x.defined() ? test::as<T>(test::values(x)) : std::vector<T>{};
  };
  return {.tokens = p.batch.length(s),
          .channels = in.a_log.dim(0),
          .state = p.state,
          .x = get(in.x),
          .dt_raw = get(in.dt_raw),
          .b = get(in.b),
          .c = get(in.c),
          .dt_bias = get(in.dt_bias),
          .a_log = get(in.a_log),
          .d = get(in.d),
          .z = get(in.z),
          .initial = p.initial.defined() ? get(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

auto reference_of_all(const Problem& p) {
  return test::reference_of_batch(
      p.batch, [&](int64_t s) { return reference::selective_scan(reference_of<double>(p, s)); });
}

void check_forms_against_reference() {
  uint64_t seed = 1;
  for (const SelectiveScanCase& c : selective_scan_test_cases()) {
    for (const bool bare : {false, true}) {
      Problem p = make_problem(c, seed += 10, /*start=*/bare ? 37 : 0);
      if (bare) p.initial = p.in.d = p.in.z = Tensor();
      const auto want = reference_of_all(p);
      const double tol = test::tolerance(DType::kF32, p.batch.tokens() + p.state);
      test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
        return selective_scan(ctx, p.in, p.initial, p.batch, p.options);
      });
    }
  }
}

TEST(SelectiveScan, MatchesTheReferenceInEveryForm) {
  test::on_every_target(check_forms_against_reference);
}

TEST(SelectiveScan, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const SelectiveScanCase& c : selective_scan_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return selective_scan(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return selective_scan_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

TEST(SelectiveScan, DecaysArePreciseFromNothingToEverything) {
  for (const float raw : {-80.0f, -20.0f, -1e-3f, 0.0f, 3.0f, 20.0f, 80.0f, 1000.0f}) {
    Problem p = make_problem({"", {1}, 3, 4}, 3);
    p.in.dt_raw = host_tensor<float>({raw, raw, raw}, {1, 3});
    Context ctx = make_context();
    const SelectiveScanResult got = selective_scan(ctx, p.in, p.initial, p.batch, p.options);
    test::expect_close(got.final_state, reference_of_all(p).final_state,
                       test::tolerance(DType::kF32, 1), "decay");
  }
}

// Gradients of <y, dy> + <final, d_final> with respect to every input that is there.
constexpr const char* kNames[] = {"x", "dt_raw", "b", "c", "dt_bias", "a_log", "d", "z", "initial"};

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  Tensor* const leaves[] = {&p.in.x,     &p.in.dt_raw, &p.in.b, &p.in.c,   &p.in.dt_bias,
                            &p.in.a_log, &p.in.d,      &p.in.z, &p.initial};
  return test::tape_gradients(base, leaves, dy, d_final, [&](Context& ctx) {
    return selective_scan(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.x,     &in.dt_raw, &in.b, &in.c,      &in.dt_bias,
                                          &in.a_log, &in.d,      &in.z, &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final,
                                  [&] { return reference::selective_scan(in); });
}

void check_gradients(const Problem& p, const Tensor& dy, const Tensor& d_final, const char* name) {
  const int64_t terms = p.batch.tokens() * p.in.a_log.count();
  std::vector<std::vector<double>> want;
  for (size_t i = 0; i < std::size(kNames); ++i) {
    want.push_back(complex_gradient(p, i, dy, d_final));
  }
  test::on_every_target([&] {
    for (const Form form : kForms) {
      Context ctx = make_context(2, form);
      const std::vector<Tensor> got = gradients_of(ctx, p, dy, d_final);
      for (size_t i = 0; i < got.size(); ++i) {
        const std::string what = std::string(name) + " d" + kNames[i];
        if (want[i].empty()) continue;
        test::expect_close(got[i], want[i], test::tolerance(DType::kF32, terms), what.c_str());
      }
    }
  });
}

TEST(SelectiveScan, GradientsMatchComplexStep) {
  const SelectiveScanCase cases[] = {{"short", {1}, 3, 2, 4},
                                     {"odd", {19}, 5, 3, 4},
                                     {"tiles", {35}, 18, 6, 8},
                                     {"waves", {150}, 2, 1, 32},
                                     {"invariant", {35}, 5, 6, 8, true}};
  for (const SelectiveScanCase& c : cases) {
    for (const bool bare : {false, true}) {
      Problem p = make_problem(c, 21, /*start=*/3);
      const Tensor dy = test::randn(p.in.x.shape(), 31),
                   d_final = test::randn(p.initial.shape(), 32);
      if (bare) p.initial = p.in.d = p.in.z = Tensor();
      check_gradients(p, dy, d_final, c.name);
    }
  }
}

TEST(SelectiveScan, GradientsOfPackedSequencesAreThoseOfEachAndOfBothForms) {
  const SelectiveScanCase c{"packed", {0, 170, 0, 1, 65}, 150, 10, 16};
  const Problem p = make_problem(c, 41);
  const Tensor dy = test::randn(p.in.x.shape(), 51), d_final = test::randn(p.initial.shape(), 52);
  Context one = make_context(1, Form::kRecurrent);
  const std::vector<Tensor> want = gradients_of(one, p, dy, d_final);
  for (const Form form : kForms) {
    Context ctx = make_context(3, form);
    const std::vector<Tensor> got = gradients_of(ctx, p, dy, d_final);
    for (size_t i = 0; i < got.size(); ++i) {
      if (form == Form::kRecurrent) {
        EXPECT_TRUE(test::same_bits(got[i], want[i])) << kNames[i];
      } else {
        test::expect_close(got[i], want[i], test::tolerance(DType::kF32, 200), kNames[i]);
      }
    }
  }
  test::expect_gradients_of_each(
      p.batch, want, {0, 1, 2, 3, 7}, [&](int64_t s, int64_t begin, int64_t end) {
        const Problem alone{slice(p.in, begin, end), p.initial.slice_rows(s, s + 1),
                            SequenceBatch::single(end - begin), p.options, p.state};
        return gradients_of(one, alone, dy.slice_rows(begin, end), d_final.slice_rows(s, s + 1));
      });
}

// Every row of x the same, `rows` times.
Tensor repeated(const Tensor& x, int64_t rows) {
  std::vector<float> values;
  for (int64_t i = 0; i < rows; ++i) {
    values.insert(values.end(), x.f32(), x.f32() + x.count());
  }
  return host_tensor(std::move(values), {rows, x.count()});
}

TEST(SelectiveScan, WithoutSelectionItIsTheInvariantSystem) {
  constexpr int64_t T = 90, E = 70, N = 12;
  Problem invariant = make_problem({"invariant", {T}, E, N, 32, true}, 61);
  const Tensor b = test::randn({N}, 62), c = test::randn({N}, 63);
  invariant.in.b = repeated(b, E);
  invariant.in.c = repeated(c, E);
  Problem selective = invariant;
  selective.in.b = repeated(b, T);
  selective.in.c = repeated(c, T);
  selective.in.dt_raw = repeated(host_tensor(std::vector<float>(E, 0.0f), {E}), T);
  for (const Form form : kForms) {
    Context ctx = make_context(2, form);
    const auto want =
        selective_scan(ctx, selective.in, selective.initial, selective.batch, selective.options);
    const auto got =
        selective_scan(ctx, invariant.in, invariant.initial, invariant.batch, invariant.options);
    EXPECT_TRUE(test::same_bits(got.y, want.y));
    EXPECT_TRUE(test::same_bits(got.final_state, want.final_state));
    // And the two differ once a token's step does.
    Problem moved = selective;
    moved.in.dt_raw = repeated(host_tensor(std::vector<float>(E, 0.0f), {E}), T);
    moved.in.dt_raw.f32()[0] = 0.5f;
    EXPECT_FALSE(test::same_bits(
        selective_scan(ctx, moved.in, moved.initial, moved.batch, moved.options).y, got.y));
  }
}

TEST(SelectiveScan, RefusesWrongShapes) {
  Problem p = make_problem({"", {4}, 3, 5}, 1);
  Context ctx = make_context();
  SelectiveScanInputs wrong = p.in;
  wrong.b = wrong.x;
  EXPECT_THROW(selective_scan(ctx, wrong, {}, p.batch), Error);
  EXPECT_THROW(selective_scan(ctx, p.in, p.in.x, p.batch), Error);
  EXPECT_THROW(selective_scan_in_place(ctx, p.in, {}, p.batch), Error);
  Tape tape;
  Context taped = ctx.with_tape(&tape);
  float* const states[] = {p.initial.f32()};
  EXPECT_THROW(selective_scan_in_place(taped, p.in, states, p.batch), Error);
}

}  // namespace
}  // namespace braid
