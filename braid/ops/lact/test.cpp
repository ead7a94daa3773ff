// Goal: large-chunk test-time training equals its reference, with momentum and orthogonalised
// updates, with second-order gradients; a token's bits do not depend on cuts, neighbours or
// threads. Method: naive float64 recurrence, complex step on it, and what the rule is in limits.

#include <fmt/format.h>

#include <span>

#include "braid/core/tape.h"
#include "braid/ops/lact/cases.h"
#include "braid/ops/lact/lact.h"
#include "braid/ops/lact/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

struct Problem {
  LactInputs in;
  Tensor initial;
  SequenceBatch batch;
  LactOptions options;
};

constexpr const char* kNames[] = {"q", "k", "v", "lr", "momentum", "w0", "w1", "w2", "initial"};

std::vector<Tensor*> leaves(Problem& p) {
  LactInputs& in = p.in;
  return {&in.q, &in.k, &in.v, &in.lr, &in.momentum, &in.w0, &in.w1, &in.w2, &p.initial};
}

Problem make_problem(const LactCase& c, uint64_t seed, int64_t start = 0) {
  const LactOptions& o = c.options;
  Problem p{.in = {}, .initial = {}, .batch = {}, .options = o};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const int64_t T = p.batch.tokens(), H = o.heads, D = o.head_dim, F = o.hidden;
  // One wide tensor, as a projection gives it: q, k and v are column slices of it.
  const Tensor all = randn({T, 3 * H * D + 1}, seed);
  p.in.q = all.slice_columns(0, H * D);
  p.in.k = all.slice_columns(H * D, 2 * H * D);
  p.in.v = all.slice_columns(2 * H * D + 1, 3 * H * D + 1);
  p.in.lr = randn({T, 3 * H}, seed + 1, 0.02f);
  if (o.momentum) {
    p.in.momentum = randn({T, H}, seed + 2, 0.2f);
    for (int64_t i = 0; i < T * H; ++i) p.in.momentum.f32()[i] += 0.5f;
  }
  p.in.w0 = randn({H, D, F}, seed + 3, 0.5f);
  p.in.w1 = randn({H, F, D}, seed + 4, 0.5f);
  p.in.w2 = randn({H, D, F}, seed + 5, 0.5f);
  p.initial = randn({p.batch.sequences(), H, lact_state_size(o)}, seed + 6, 0.4f);
  return p;
}

LactInputs slice(const LactInputs& in, int64_t begin, int64_t end) {
  LactInputs out = in;
  for (Tensor* x : {&out.q, &out.k, &out.v, &out.lr, &out.momentum}) {
    if (x->defined()) *x = x->slice_rows(begin, end);
  }
  return out;
}

template <class T>
reference::Lact<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const LactInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  const auto get = [](const Tensor& x) {
    return x.defined() ? as<T>(values(x)) : std::vector<T>{};
  };
  return {.options = p.options,
          .start = p.batch.starts[i],
          .tokens = p.batch.length(s),
          .q = get(in.q),
          .k = get(in.k),
          .v = get(in.v),
          .lr = get(in.lr),
          .momentum = get(in.momentum),
          .w0 = get(in.w0),
          .w1 = get(in.w1),
          .w2 = get(in.w2),
          .initial = p.initial.defined() ? get(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

void check_against_reference() {
  uint64_t seed = 1;
  for (const LactCase& c : lact_test_cases()) {
    for (const int64_t start : {0, 3}) {
      const Problem p = make_problem(c, seed += 20, start);
      const auto want = test::reference_of_batch(
          p.batch, [&](int64_t s) { return reference::lact(reference_of<double>(p, s)); });
      // Chunks feed on what they computed, so the length is that of all of it; an orthogonalised
      // update is five cubic steps more.
      const double tol = tolerance(
          DType::kF32, p.batch.tokens() * p.options.head_dim * (p.options.muon ? 125 : 1));
      test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
        return lact(ctx, p.in, p.initial, p.batch, p.options);
      });
    }
  }
}

TEST(Lact, MatchesTheReference) { on_every_target(check_against_reference); }

TEST(Lact, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const LactCase& c : lact_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return lact(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return lact_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  return test::tape_gradients(base, leaves(p), dy, d_final, [&](Context& ctx) {
    return lact(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.q,  &in.k,  &in.v,  &in.lr,     &in.momentum,
                                          &in.w0, &in.w1, &in.w2, &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final, [&] { return reference::lact(in); });
}

void check_gradients() {
  const LactOptions plain{.heads = 2, .head_dim = 4, .hidden = 3, .chunk = 4};
  LactOptions momentum = plain, muon = plain, both = plain;
  momentum.momentum = true, momentum.chunk = 3;
  muon.muon = true;
  both.muon = both.momentum = true, both.hidden = 5, both.heads = 1;
  const LactCase cases[] = {{"plain", {11}, plain},
                            {"one token", {1}, plain},
                            {"momentum", {10}, momentum},
                            {"muon", {6}, muon},
                            {"both", {10}, both}};
  for (const LactCase& c : cases) {
    for (const int64_t start : {0, 2}) {
      const Problem p = make_problem(c, 21, start);
      const Tensor dy = randn(Shape{p.in.q.dim(0), p.in.q.dim(1)}, 31);
      const Tensor d_final = randn(p.initial.shape(), 32, 0.5f);
      Context ctx = make_context(2);
      const auto got = gradients_of(ctx, p, dy, d_final);
      for (size_t i = 0; i < 9; ++i) {
        if (!got[i].defined()) continue;
        const std::string what = fmt::format("{} from {} d{}", c.name, start, kNames[i]);
        // Every gradient is a sum over all later tokens and the weights in between.
        const double tol = tolerance(
            DType::kF32, p.batch.tokens() * c.options.head_dim * 16 * (c.options.muon ? 125 : 1));
        expect_close(got[i], complex_gradient(p, i, dy, d_final), tol, what.c_str());
      }
    }
  }
}

TEST(Lact, GradientsMatchComplexStep) { on_every_target(check_gradients); }

TEST(Lact, GradientsOfPackedSequencesAreThoseOfEach) {
  const LactOptions o{
      .heads = 3, .head_dim = 10, .hidden = 12, .chunk = 8, .momentum = true, .muon = true};
  const Problem p = make_problem({"packed", {45, 0, 1, 17}, o}, 41, /*start=*/5);
  const Tensor dy = randn(Shape{p.in.q.dim(0), p.in.q.dim(1)}, 51);
  const Tensor d_final = randn(p.initial.shape(), 52);
  Context one = make_context(1), three = make_context(3);
  const auto want = gradients_of(one, p, dy, d_final);
  const auto threaded = gradients_of(three, p, dy, d_final);
  for (size_t i = 0; i < 9; ++i) EXPECT_TRUE(same_bits(threaded[i], want[i])) << kNames[i];
  test::expect_gradients_of_each(
      p.batch, want, {0, 1, 2, 3, 4}, [&](int64_t s, int64_t begin, int64_t end) {
        const Problem alone{slice(p.in, begin, end), p.initial.slice_rows(s, s + 1),
                            SequenceBatch::single(end - begin, 5), p.options};
        return gradients_of(one, alone, dy.slice_rows(begin, end), d_final.slice_rows(s, s + 1));
      });
}

// With learning rates 0 nothing is learned; columns keep their norms, up to the 1e-5 beside them.
TEST(Lact, WithoutLearningRateTheModelIsFrozen) {
  const LactCase c{"", {15}, {.heads = 2, .head_dim = 8, .hidden = 12, .chunk = 64}};
  Problem p = make_problem(c, 71);
  std::ranges::fill_n(p.in.lr.f32(), p.in.lr.count(), 0.0f);
  Context ctx = make_context();
  const auto got = lact(ctx, p.in, {}, p.batch, p.options);
  SequenceBatch each;
  for (int64_t t = 0; t < 15; ++t) each.add(1);
  EXPECT_TRUE(same_bits(got.y, lact(ctx, p.in, {}, each, p.options).y));
  p.options.chunk = 1;
  const auto updated = lact(ctx, p.in, {}, p.batch, p.options);
  EXPECT_LT(max_error(values(updated.y), values(got.y)), 15 * 1e-5 * 8);
}

// An orthogonalised update moves all directions alike: its singular values lie near 1.
TEST(Lact, MuonBringsSingularValuesNearOne) {
  reference::LactMatrix<double> m(6, 9);
  const Rng rng(3);
  for (size_t i = 0; i < m.x.size(); ++i) m.x[i] = rng.normal(i);
  const auto x = reference::orthogonal(m);
  const auto gram = reference::product(x, reference::transposed(x));
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) EXPECT_NEAR(gram.at(i, j), i == j ? 1 : 0, 0.3);
  }
}

TEST(Lact, RefusesWrongShapes) {
  const Problem p =
      make_problem({"", {4}, {.heads = 2, .head_dim = 4, .hidden = 8, .momentum = true}}, 1);
  Context ctx = make_context();
  LactInputs wrong = p.in;
  wrong.w1 = wrong.w0;
  EXPECT_THROW(lact(ctx, wrong, {}, p.batch, p.options), Error);
  wrong = p.in;
  wrong.momentum = Tensor();
  EXPECT_THROW(lact(ctx, wrong, {}, p.batch, p.options), Error);
  EXPECT_THROW(lact(ctx, p.in, p.in.q, p.batch, p.options), Error);
  EXPECT_THROW(lact_in_place(ctx, p.in, {}, p.batch, p.options), Error);
  LactOptions none = p.options;
  none.chunk = 0;
  EXPECT_THROW(lact(ctx, p.in, {}, p.batch, none), Error);
}

}  // namespace
}  // namespace braid
