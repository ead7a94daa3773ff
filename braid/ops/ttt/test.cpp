// Goal: test-time training equals its reference with both inner models, with second-order
// gradients; a token's bits do not depend on cuts, neighbours or threads. Method: naive float64
// primal form, complex step on it, its dual form beside it, and what the rule is in limits.

#include <fmt/format.h>

#include <span>

#include "braid/core/tape.h"
#include "braid/ops/linear_attention/linear_attention.h"
#include "braid/ops/ttt/cases.h"
#include "braid/ops/ttt/reference.h"
#include "braid/ops/ttt/ttt.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

struct Problem {
  TttInputs in;
  Tensor initial;
  SequenceBatch batch;
  TttOptions options;
};

constexpr const char* kNames[] = {"q",         "k",  "v",  "lr", "rate", "norm_weight",
                                  "norm_bias", "w1", "b1", "w2", "b2",   "initial"};

std::vector<Tensor*> leaves(Problem& p) {
  TttInputs& in = p.in;
  std::vector<Tensor*> all = {&in.q,         &in.k,  &in.v,  &in.lr, &in.rate, &in.norm_weight,
                              &in.norm_bias, &in.w1, &in.b1, &in.w2, &in.b2,   &p.initial};
  return all;
}

void move(const Tensor& x, float shift) {
  for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] += shift;
}

Problem make_problem(const TttCase& c, uint64_t seed, int64_t start = 0) {
  const TttOptions& o = c.options;
  Problem p{.in = {}, .initial = {}, .batch = {}, .options = o};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const int64_t T = p.batch.tokens(), H = o.heads, D = o.head_dim;
  const int64_t F = o.hidden > 0 ? o.hidden : D;
  // One wide tensor, as a projection gives it: q, k and v are column slices of it.
  const Tensor all = randn({T, 3 * H * D + 1}, seed);
  p.in.q = all.slice_columns(0, H * D);
  p.in.k = all.slice_columns(H * D, 2 * H * D);
  p.in.v = all.slice_columns(2 * H * D + 1, 3 * H * D + 1);
  const float scale = 0.5f / static_cast<float>(D);
  p.in.lr = randn({T, H}, seed + 1, 0.2f * scale);
  move(p.in.lr, scale);
  p.in.rate = randn({o.mini_batch}, seed + 2, 0.05f);
  for (int64_t i = 0; i < o.mini_batch; ++i) {
    p.in.rate.f32()[i] += 1.0f / static_cast<float>(i + 1);
  }
  if (o.norm) {
    p.in.norm_weight = randn({H, D}, seed + 3, 0.2f);
    move(p.in.norm_weight, 1);
    p.in.norm_bias = randn({H, D}, seed + 4, 0.2f);
  }
  p.in.w1 = randn({H, D, F}, seed + 5, 0.3f);
  p.in.b1 = randn({H, F}, seed + 6, 0.3f);
  if (o.hidden > 0) {
    p.in.w2 = randn({H, F, D}, seed + 7, 0.3f);
    p.in.b2 = randn({H, D}, seed + 8, 0.3f);
  }
  p.initial = randn({p.batch.sequences(), H, ttt_state_size(o)}, seed + 9, 0.2f);
  return p;
}

TttInputs slice(const TttInputs& in, int64_t begin, int64_t end) {
  TttInputs out = in;
  for (Tensor* x : {&out.q, &out.k, &out.v, &out.lr}) *x = x->slice_rows(begin, end);
  return out;
}

template <class T>
reference::Ttt<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const TttInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
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
          .rate = get(in.rate),
          .norm_weight = get(in.norm_weight),
          .norm_bias = get(in.norm_bias),
          .w1 = get(in.w1),
          .b1 = get(in.b1),
          .w2 = get(in.w2),
          .b2 = get(in.b2),
          .initial = p.initial.defined() ? get(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

// Rows of the state that a sequence's start has not reached are no state.
void clear_unreached(const Problem& p) {
  const TttOptions& o = p.options;
  const int64_t K = o.mini_batch, D = o.head_dim;
  for (int64_t s = 0; s < p.initial.rows(); ++s) {
    const int64_t phase = p.batch.starts[static_cast<size_t>(s)] % K;
    for (int64_t h = 0; h < o.heads; ++h) {
      float* at = p.initial.f32() + (s * o.heads + h) * ttt_state_size(o);
      at += o.hidden > 0 ? 2 * D * o.hidden + o.hidden + D : D * D + D;
      const auto clear = [&](int64_t width) {
        std::fill(at + phase * width, at + K * width, 0.0f);
        at += K * width;
      };
      clear(D);
      for (int64_t r = 0; r < o.steps; ++r) {
        clear(o.hidden > 0 ? o.hidden : D);
        if (o.hidden > 0) clear(o.hidden), clear(D);
      }
    }
  }
}

void check_against_reference() {
  uint64_t seed = 1;
  for (const TttCase& c : ttt_test_cases()) {
    for (const int64_t start : {0, 3}) {
      Problem p = make_problem(c, seed += 20, start);
      clear_unreached(p);
      const auto want = test::reference_of_batch(
          p.batch, [&](int64_t s) { return reference::ttt(reference_of<double>(p, s)); });
      // Norms and mini-batches feed on what they computed, so the length is that of all of it.
      const double tol = tolerance(DType::kF32, p.batch.tokens() * p.options.head_dim);
      test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
        return ttt(ctx, p.in, p.initial, p.batch, p.options);
      });
    }
  }
}

TEST(Ttt, MatchesTheReference) { on_every_target(check_against_reference); }

// In float64 the two forms of the reference agree wherever the sequence is cut.
TEST(Ttt, DualIsPrimalAtEverySplit) {
  for (const TttCase& c : ttt_test_cases()) {
    const Problem p = make_problem(c, 3);
    auto whole = reference_of<double>(p, p.batch.sequences() - 1);
    const auto want = reference::ttt(whole);
    const double tol = tolerance(DType::kF64, 64 * whole.tokens);
    const int64_t row = c.options.heads * c.options.head_dim;
    for (int64_t cut = 0; cut <= whole.tokens; ++cut) {
      auto first = whole, second = whole;
      first.tokens = cut;
      const auto a = reference::ttt(first, reference::TttForm::kDual);
      second.tokens = whole.tokens - cut;
      second.start = cut;
      second.initial = a.final_state;
      for (auto* x : {&second.q, &second.k, &second.v})
        x->erase(x->begin(), x->begin() + cut * row);
      second.lr.erase(second.lr.begin(), second.lr.begin() + cut * c.options.heads);
      const auto b = reference::ttt(second, reference::TttForm::kDual);
      auto y = a.y;
      y.insert(y.end(), b.y.begin(), b.y.end());
      expect_close(y, want.y, tol, c.name);
      expect_close(b.final_state, want.final_state, tol, c.name);
    }
  }
}

TEST(Ttt, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const TttCase& c : ttt_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return ttt(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return ttt_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  return test::tape_gradients(base, leaves(p), dy, d_final, [&](Context& ctx) {
    return ttt(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.q,    &in.k,           &in.v,         &in.lr,
                                          &in.rate, &in.norm_weight, &in.norm_bias, &in.w1,
                                          &in.b1,   &in.w2,          &in.b2,        &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final, [&] { return reference::ttt(in); });
}

void check_gradients() {
  const TttOptions linear{.heads = 2, .head_dim = 4, .mini_batch = 4};
  const TttOptions mlp{.heads = 1, .head_dim = 6, .hidden = 7, .mini_batch = 3};
  TttOptions plain = linear, steps = linear, mlp_steps = mlp, mlp_plain = mlp;
  plain.norm = plain.residual = false;
  steps.steps = 3;
  mlp_steps.steps = 2, mlp_steps.heads = 2;
  mlp_plain.norm = false;
  const TttCase cases[] = {{"linear", {11}, linear},
                           {"one token", {1}, linear},
                           {"plain", {9}, plain},
                           {"steps", {6}, steps},
                           {"mlp", {20}, mlp},
                           {"mlp steps", {5}, mlp_steps},
                           {"mlp without norm", {7}, mlp_plain}};
  for (const TttCase& c : cases) {
    for (const int64_t start : {0, 2}) {
      const Problem p = make_problem(c, 21, start);
      clear_unreached(p);
      const Tensor dy = randn(Shape{p.in.q.dim(0), p.in.q.dim(1)}, 31);
      const Tensor d_final = randn(p.initial.shape(), 32, 0.5f);
      Context ctx = make_context(2);
      const auto got = gradients_of(ctx, p, dy, d_final);
      for (size_t i = 0; i < 12; ++i) {
        if (!got[i].defined()) continue;
        const std::string what = fmt::format("{} from {} d{}", c.name, start, kNames[i]);
        auto want = complex_gradient(p, i, dy, d_final);
        // Every gradient is a sum over all later tokens and the weights in between.
        const double tol =
            tolerance(DType::kF32, p.batch.tokens() * c.options.head_dim * c.options.steps * 16);
        if (start > 0 && i == 11) {  // unreached rows are read by nobody, here or there
          Problem mask = p;
          mask.initial = host_tensor(std::vector<float>(want.size(), 1.0f), p.initial.shape());
          clear_unreached(mask);
          for (size_t j = 0; j < want.size(); ++j) want[j] *= mask.initial.f32()[j];
        }
        expect_close(got[i], want, tol, what.c_str());
      }
    }
  }
}

TEST(Ttt, GradientsMatchComplexStep) { on_every_target(check_gradients); }

TEST(Ttt, GradientsOfPackedSequencesAreThoseOfEach) {
  for (TttOptions o : {TttOptions{.heads = 3, .head_dim = 20, .mini_batch = 8},
                       TttOptions{.heads = 3, .head_dim = 6, .hidden = 24, .mini_batch = 8}}) {
    const Problem p = make_problem({"packed", {45, 0, 1, 17}, o}, 41, /*start=*/5);
    const Tensor dy = randn(Shape{p.in.q.dim(0), p.in.q.dim(1)}, 51);
    const Tensor d_final = randn(p.initial.shape(), 52);
    Context one = make_context(1), three = make_context(3);
    const auto want = gradients_of(one, p, dy, d_final);
    const auto threaded = gradients_of(three, p, dy, d_final);
    for (size_t i = 0; i < 12; ++i) {
      if (!want[i].defined()) continue;
      EXPECT_TRUE(same_bits(threaded[i], want[i])) << kNames[i];
    }
    test::expect_gradients_of_each(
        p.batch, want, {0, 1, 2, 3}, [&](int64_t s, int64_t begin, int64_t end) {
          const Problem alone{slice(p.in, begin, end), p.initial.slice_rows(s, s + 1),
                              SequenceBatch::single(end - begin, 5), p.options};
          return gradients_of(one, alone, dy.slice_rows(begin, end), d_final.slice_rows(s, s + 1));
        });
  }
}

// Too many fast weights to keep all: those made again are the same, so a long sequence has the
// gradients of its two halves, each short enough, with the state's handed on.
TEST(Ttt, GradientsDoNotDependOnWhatIsKept) {
  constexpr int64_t T = 560, kHalf = 250;
  const Problem p = make_problem({"", {T}, {.heads = 1, .head_dim = 64, .mini_batch = 1}}, 81, 7);
  const Tensor dy = randn(Shape{T, 64}, 91), d_final = randn(p.initial.shape(), 92);
  Context ctx = make_context(1);
  const auto want = gradients_of(ctx, p, dy, d_final);
  Problem first{slice(p.in, 0, kHalf), p.initial, SequenceBatch::single(kHalf, 7), p.options};
  const Tensor between = ttt(ctx, first.in, p.initial, first.batch, p.options).final_state;
  const Problem second{slice(p.in, kHalf, T), between, SequenceBatch::single(T - kHalf, 7 + kHalf),
                       p.options};
  const auto late = gradients_of(ctx, second, dy.slice_rows(kHalf, T), d_final);
  const auto early = gradients_of(ctx, first, dy.slice_rows(0, kHalf), late[11]);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(same_bits(early[i], want[i].slice_rows(0, kHalf))) << kNames[i];
    EXPECT_TRUE(same_bits(late[i], want[i].slice_rows(kHalf, T))) << kNames[i];
  }
  EXPECT_TRUE(same_bits(early[11], want[11]));
}

// A linear model without norm and residual that starts from zero, one mini-batch, rate 1: linear
// attention over keys and queries with a 1 for the bias, values times their learning rates.
TEST(Ttt, OneLinearMiniBatchIsLinearAttention) {
  constexpr int64_t T = 37, H = 2, D = 9;
  const TttCase c{
      "", {T}, {.heads = H, .head_dim = D, .mini_batch = 64, .norm = false, .residual = false}};
  Problem p = make_problem(c, 61);
  std::ranges::fill_n(p.in.rate.f32(), 64, 1.0f);
  std::ranges::fill_n(p.in.w1.f32(), H * D * D, 0.0f);
  std::ranges::fill_n(p.in.b1.f32(), H * D, 0.0f);
  std::vector<float> q, k, v;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < D; ++i) {
        q.push_back(p.in.q.f32()[t * p.in.q.row_stride() + h * D + i]);
        k.push_back(p.in.k.f32()[t * p.in.k.row_stride() + h * D + i]);
        v.push_back(p.in.v.f32()[t * p.in.v.row_stride() + h * D + i] * p.in.lr.f32()[t * H + h]);
      }
      q.push_back(1);
      k.push_back(1);
    }
  }
  Context ctx = make_context();
  const LinearAttentionInputs attention{.q = host_tensor(q, {T, H * (D + 1)}),
                                        .k = host_tensor(k, {T, H * (D + 1)}),
                                        .v = host_tensor(v, {T, H * D})};
  const auto want =
      linear_attention(ctx, attention, {}, p.batch, {.heads = H, .key_dim = D + 1, .value_dim = D});
  const auto got = ttt(ctx, p.in, {}, p.batch, p.options);
  expect_close(got.y, values(want.y), tolerance(DType::kF32, T), "y");
}

// With learning rate 0 nothing is learned: the first weights serve all tokens.
TEST(Ttt, WithoutLearningRateTheModelIsFrozen) {
  for (const int64_t hidden : {0, 12}) {
    TttCase c{"", {40}, {.heads = 2, .head_dim = 8, .hidden = hidden, .mini_batch = 16}};
    Problem p = make_problem(c, 71);
    std::ranges::fill_n(p.in.lr.f32(), p.in.lr.count(), 0.0f);
    Context ctx = make_context();
    const auto got = ttt(ctx, p.in, {}, p.batch, p.options);
    // Each token alone, at the start of a sequence of its own.
    SequenceBatch each;
    for (int64_t t = 0; t < 40; ++t) each.add(1);
    const auto want = ttt(ctx, p.in, {}, each, p.options);
    EXPECT_TRUE(same_bits(got.y, want.y));
    const int64_t size = ttt_state_size(p.options);
    const auto state = values(got.final_state);
    const auto w1 = values(p.in.w1);
    for (size_t i = 0; i < w1.size() / 2; ++i) {
      EXPECT_EQ(state[i], w1[i]);
      EXPECT_EQ(state[static_cast<size_t>(size) + i], w1[w1.size() / 2 + i]);
    }
  }
}

TEST(Ttt, RefusesWrongShapes) {
  const Problem p = make_problem({"", {4}, {.heads = 2, .head_dim = 4, .hidden = 8}}, 1);
  Context ctx = make_context();
  TttInputs wrong = p.in;
  wrong.rate = wrong.b1;
  EXPECT_THROW(ttt(ctx, wrong, {}, p.batch, p.options), Error);
  wrong = p.in;
  wrong.w2 = Tensor();
  EXPECT_THROW(ttt(ctx, wrong, {}, p.batch, p.options), Error);
  EXPECT_THROW(ttt(ctx, p.in, p.in.q, p.batch, p.options), Error);
  EXPECT_THROW(ttt_in_place(ctx, p.in, {}, p.batch, p.options), Error);
  TttOptions none = p.options;
  none.steps = 0;
  EXPECT_THROW(ttt(ctx, p.in, {}, p.batch, none), Error);
}

}  // namespace
}  // namespace braid
