// Goal: the gated delta rule equals its reference in all forms, with gradients; a token's bits do
// not depend on cuts, neighbours or threads. Method: naive float64 recurrence, complex step on it.

#include <span>

#include "braid/core/tape.h"
#include "braid/ops/gated_delta_rule/cases.h"
#include "braid/ops/gated_delta_rule/gated_delta_rule.h"
#include "braid/ops/gated_delta_rule/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

struct Problem {
  GatedDeltaInputs in;
  Tensor initial;
  SequenceBatch batch;
  GatedDeltaOptions options;
};

// Keys of norm 1, beta in (0, 1), decays in (0.4, 1): what a layer feeds the rule.
Problem make_problem(const GatedDeltaCase& c, uint64_t seed, int64_t start = 0) {
  const GatedDeltaOptions& o = c.options;
  Problem p{.in = {}, .initial = {}, .batch = {}, .options = o};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const int64_t tokens = p.batch.tokens(), gk = o.key_heads * o.key_dim, hv = o.heads * o.value_dim;
  // One wide tensor, as a projection gives it: q, k and v are column slices of it.
  const Tensor all = randn({tokens, 2 * gk + hv + 1}, seed);
  p.in.q = all.slice_columns(0, gk);
  p.in.k = all.slice_columns(gk, 2 * gk);
  p.in.v = all.slice_columns(2 * gk + 1, 2 * gk + 1 + hv);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t g = 0; g < o.key_heads; ++g) {
      float* k = p.in.k.f32() + t * p.in.k.row_stride() + g * o.key_dim;
      float square = 1e-6f;
      for (int64_t i = 0; i < o.key_dim; ++i) square += k[i] * k[i];
      for (int64_t i = 0; i < o.key_dim; ++i) k[i] /= std::sqrt(square);
    }
  }
  p.in.log_decay = randn({tokens, o.heads}, seed + 1);
  p.in.beta = randn({tokens, o.heads}, seed + 2);
  for (int64_t i = 0; i < p.in.beta.count(); ++i) {
    p.in.log_decay.f32()[i] = -0.3f * std::abs(p.in.log_decay.f32()[i]);
    p.in.beta.f32()[i] = 1.0f / (1.0f + std::exp(p.in.beta.f32()[i]));
  }
  p.initial = randn({p.batch.sequences(), o.heads, o.key_dim, o.value_dim}, seed + 4);
  return p;
}

GatedDeltaInputs slice(const GatedDeltaInputs& in, int64_t begin, int64_t end) {
  GatedDeltaInputs out = in;
  for (Tensor* x : {&out.q, &out.k, &out.v, &out.log_decay, &out.beta}) {
    *x = x->slice_rows(begin, end);
  }
  return out;
}

template <class T>
reference::GatedDelta<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const GatedDeltaInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  const auto get = [](const Tensor& x) { return as<T>(values(x)); };
  return {.tokens = p.batch.length(s),
          .heads = p.options.heads,
          .key_heads = p.options.key_heads,
          .key_dim = p.options.key_dim,
          .value_dim = p.options.value_dim,
          .q = get(in.q),
          .k = get(in.k),
          .v = get(in.v),
          .log_decay = get(in.log_decay),
          .beta = get(in.beta),
          .initial = p.initial.defined() ? get(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

void check_forms_against_reference() {
  uint64_t seed = 1;
  for (const GatedDeltaCase& c : gated_delta_test_cases()) {
    Problem p = make_problem(c, seed += 10, /*start=*/37);
    if (seed % 20 == 1) p.initial = Tensor();
    const auto want = test::reference_of_batch(p.batch, [&](int64_t s) {
      return reference::gated_delta_rule(reference_of<double>(p, s));
    });
    const double tol = tolerance(DType::kF32, p.batch.tokens() + p.options.key_dim);
    test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
      return gated_delta_rule(ctx, p.in, p.initial, p.batch, p.options);
    });
  }
}

TEST(GatedDeltaRule, MatchesTheReferenceInEveryForm) {
  on_every_target(check_forms_against_reference);
}

TEST(GatedDeltaRule, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const GatedDeltaCase& c : gated_delta_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return gated_delta_rule(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return gated_delta_rule_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

constexpr const char* kNames[] = {"q", "k", "v", "log_decay", "beta", "initial"};

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  Tensor* const leaves[] = {&p.in.q, &p.in.k, &p.in.v, &p.in.log_decay, &p.in.beta, &p.initial};
  return test::tape_gradients(base, leaves, dy, d_final, [&](Context& ctx) {
    return gated_delta_rule(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.q,         &in.k,    &in.v,
                                          &in.log_decay, &in.beta, &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final,
                                  [&] { return reference::gated_delta_rule(in); });
}

void check_gradients() {
  const GatedDeltaOptions shared{
      .heads = 4, .key_heads = 2, .key_dim = 3, .value_dim = 2, .chunk = 8};
  const GatedDeltaOptions long_chunk{
      .heads = 1, .key_heads = 1, .key_dim = 5, .value_dim = 3, .chunk = 64};
  const GatedDeltaCase cases[] = {
      {"short", {1}, shared}, {"odd", {19}, shared}, {"solve", {35}, long_chunk}};
  for (const GatedDeltaCase& c : cases) {
    const Problem p = make_problem(c, 21, /*start=*/3);
    const Tensor dy = randn(p.in.v.shape(), 31), d_final = randn(p.initial.shape(), 32);
    Context ctx = make_context(2);
    const auto got = gradients_of(ctx, p, dy, d_final);
    for (size_t i = 0; i < 6; ++i) {
      const std::string what = std::string(c.name) + " d" + kNames[i];
      // A decay gathers from all later tokens and the whole state of its head.
      const int64_t terms =
          i == 3 ? p.batch.tokens() * c.options.key_dim * c.options.value_dim : 64;
      expect_close(got[i], complex_gradient(p, i, dy, d_final), tolerance(DType::kF32, terms),
                   what.c_str());
    }
  }
}

TEST(GatedDeltaRule, GradientsMatchComplexStep) { on_every_target(check_gradients); }

TEST(GatedDeltaRule, GradientsOfPackedSequencesAreThoseOfEach) {
  const GatedDeltaCase c{
      "packed", {70, 0, 1, 65}, {.heads = 4, .key_heads = 2, .key_dim = 20, .value_dim = 40}};
  const Problem p = make_problem(c, 41);
  const Tensor dy = randn(p.in.v.shape(), 51), d_final = randn(p.initial.shape(), 52);
  Context one = make_context(1), three = make_context(3);
  const auto want = gradients_of(one, p, dy, d_final);
  const auto threaded = gradients_of(three, p, dy, d_final);
  for (size_t i = 0; i < 6; ++i) EXPECT_TRUE(same_bits(threaded[i], want[i])) << kNames[i];
  test::expect_gradients_of_each(
      p.batch, want, {0, 1, 2, 3, 4}, [&](int64_t s, int64_t begin, int64_t end) {
        const Problem alone{slice(p.in, begin, end), p.initial.slice_rows(s, s + 1),
                            SequenceBatch::single(end - begin), p.options};
        return gradients_of(one, alone, dy.slice_rows(begin, end), d_final.slice_rows(s, s + 1));
      });
}

// With beta 0 nothing is written: the state only decays.
TEST(GatedDeltaRule, WithoutBetaOnlyDecays) {
  const GatedDeltaCase c{
      "", {9}, {.heads = 2, .key_heads = 1, .key_dim = 6, .value_dim = 7, .chunk = 4}};
  Problem p = make_problem(c, 61);
  p.in.beta = host_tensor(std::vector<float>(18, 0.0f), {9, 2});
  const auto log = values(p.in.log_decay);
  auto want = values(p.initial);
  for (size_t h = 0; h < 2; ++h) {
    double sum = 0;
    for (size_t t = 0; t < 9; ++t) sum += log[t * 2 + h];
    for (size_t i = 0; i < 42; ++i) want[h * 42 + i] *= std::exp(sum);
  }
  for (const Form form : kForms) {
    Context ctx = make_context(1, form);
    const auto got = gated_delta_rule(ctx, p.in, p.initial, p.batch, p.options);
    expect_close(got.final_state, want, tolerance(DType::kF32, 9), "state");
  }
}

// With keys that are orthogonal nothing is predicted: the rule is linear attention with a decay.
TEST(GatedDeltaRule, WithOrthogonalKeysIsRetention) {
  constexpr int64_t n = 8;
  Problem p = make_problem(
      {"", {n}, {.heads = 1, .key_heads = 1, .key_dim = n, .value_dim = 5, .chunk = 4}}, 71);
  p.initial = Tensor();
  std::vector<float> identity(n * n, 0.0f);
  for (int64_t i = 0; i < n; ++i) identity[static_cast<size_t>(i * n + i)] = 1.0f;
  p.in.k = host_tensor(identity, {n, n});
  const auto q = values(p.in.q), v = values(p.in.v), log = values(p.in.log_decay),
             beta = values(p.in.beta);
  std::vector<double> want(n * 5, 0.0);
  for (size_t t = 0; t < n; ++t) {
    double sum = 0;
    for (size_t j = t + 1; j-- > 0;) {
      for (size_t i = 0; i < 5; ++i) {
        want[t * 5 + i] += std::exp(sum) * q[t * n + j] * beta[j] * v[j * 5 + i];
      }
      sum += log[j];
    }
  }
  for (const Form form : kForms) {
    Context ctx = make_context(1, form);
    const auto got = gated_delta_rule(ctx, p.in, p.initial, p.batch, p.options);
    expect_close(got.y, want, tolerance(DType::kF32, n), "y");
  }
}

TEST(GatedDeltaRule, RefusesWrongShapes) {
  const Problem p =
      make_problem({"", {4}, {.heads = 2, .key_heads = 1, .key_dim = 3, .value_dim = 5}}, 1);
  Context ctx = make_context();
  GatedDeltaInputs wrong = p.in;
  wrong.k = wrong.v;
  EXPECT_THROW(gated_delta_rule(ctx, wrong, {}, p.batch, p.options), Error);
  wrong = p.in;
  wrong.beta = randn({4, 3}, 1).slice_columns(0, 2);
  EXPECT_THROW(gated_delta_rule(ctx, wrong, {}, p.batch, p.options), Error);
  EXPECT_THROW(gated_delta_rule_in_place(ctx, p.in, {}, p.batch, p.options), Error);
  GatedDeltaOptions odd = p.options;
  odd.key_heads = 3;
  EXPECT_THROW(gated_delta_rule(ctx, p.in, {}, p.batch, odd), Error);
}

}  // namespace
}  // namespace braid
