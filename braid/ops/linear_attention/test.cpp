// Goal: linear attention equals its reference in all forms, with gradients, for every kind of
// decay; a token's bits do not depend on cuts, neighbours or threads. Method: naive float64
// recurrence, complex step on it.

#include <span>

#include "braid/core/tape.h"
#include "braid/ops/linear_attention/cases.h"
#include "braid/ops/linear_attention/linear_attention.h"
#include "braid/ops/linear_attention/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/recurrence.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

struct Problem {
  LinearAttentionInputs in;
  Tensor initial;
  SequenceBatch batch;
  LinearAttentionOptions options;
};

Problem make_problem(const LinearAttentionCase& c, uint64_t seed, int64_t start = 0) {
  const LinearAttentionOptions& o = c.options;
  Problem p{.in = {}, .initial = {}, .batch = {}, .options = o};
  for (const int64_t length : c.lengths) p.batch.add(length, start);
  const int64_t tokens = p.batch.tokens(), hk = o.heads * o.key_dim, hv = o.heads * o.value_dim;
  // One wide tensor, as a projection gives it: q, k and v are column slices of it.
  const Tensor all = randn({tokens, 2 * hk + hv + o.heads}, seed);
  p.in.q = all.slice_columns(0, hk);
  p.in.k = all.slice_columns(hk, 2 * hk);
  p.in.v = all.slice_columns(2 * hk, 2 * hk + hv);
  if (c.decay == DecayKind::kPerToken) {
    Tensor log = all.slice_columns(2 * hk + hv, 2 * hk + hv + o.heads);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < o.heads; ++h) {
        float& at = log.f32()[t * log.row_stride() + h];
        at = -0.3f * std::abs(at);
      }
    }
    p.in.log_decay = log;
  } else if (c.decay == DecayKind::kConstant) {
    std::vector<float> log(static_cast<size_t>(o.heads));
    for (size_t h = 0; h < log.size(); ++h) log[h] = -0.2f / static_cast<float>(h + 1);
    p.in.log_decay = host_tensor(log, {o.heads});
  }
  p.initial = randn({p.batch.sequences(), o.heads, o.value_dim, o.key_dim}, seed + 4);
  return p;
}

LinearAttentionInputs slice(const LinearAttentionInputs& in, int64_t begin, int64_t end) {
  LinearAttentionInputs out = in;
  for (Tensor* x : {&out.q, &out.k, &out.v}) *x = x->slice_rows(begin, end);
  if (in.log_decay.defined() && in.log_decay.rank() == 2) {
    out.log_decay = in.log_decay.slice_rows(begin, end);
  }
  return out;
}

template <class T>
reference::LinearAttention<T> reference_of(const Problem& p, int64_t s) {
  const auto i = static_cast<size_t>(s);
  const LinearAttentionInputs in = slice(p.in, p.batch.offsets[i], p.batch.offsets[i + 1]);
  const auto get = [](const Tensor& x) {
    return x.defined() ? as<T>(values(x)) : std::vector<T>{};
  };
  return {.tokens = p.batch.length(s),
          .heads = p.options.heads,
          .key_dim = p.options.key_dim,
          .value_dim = p.options.value_dim,
          .q = get(in.q),
          .k = get(in.k),
          .v = get(in.v),
          .log_decay = get(in.log_decay),
          .initial = p.initial.defined() ? get(p.initial.slice_rows(s, s + 1)) : std::vector<T>{}};
}

auto reference_of_all(const Problem& p) {
  return test::reference_of_batch(
      p.batch, [&](int64_t s) { return reference::linear_attention(reference_of<double>(p, s)); });
}

void check_forms_against_reference() {
  uint64_t seed = 1;
  for (const LinearAttentionCase& c : linear_attention_test_cases()) {
    Problem p = make_problem(c, seed += 10, /*start=*/37);
    if (seed % 20 == 1) p.initial = Tensor();
    const auto want = reference_of_all(p);
    const double tol = tolerance(DType::kF32, p.batch.tokens() + p.options.key_dim);
    test::expect_every_form(want, tol, c.name, [&](Context& ctx) {
      return linear_attention(ctx, p.in, p.initial, p.batch, p.options);
    });
  }
}

TEST(LinearAttention, MatchesTheReferenceInEveryForm) {
  on_every_target(check_forms_against_reference);
}

TEST(LinearAttention, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  for (const LinearAttentionCase& c : linear_attention_test_cases()) {
    const Problem p = make_problem(c, 5);
    test::expect_same_bits_however_cut(
        p.initial, p.batch,
        [&](Context& ctx) { return linear_attention(ctx, p.in, p.initial, p.batch, p.options); },
        [&](Context& ctx, int64_t begin, int64_t end, std::span<float* const> states,
            const SequenceBatch& single) {
          return linear_attention_in_place(ctx, slice(p.in, begin, end), states, single, p.options);
        },
        c.name);
  }
}

constexpr const char* kNames[] = {"q", "k", "v", "log_decay", "initial"};

std::vector<Tensor> gradients_of(Context& base, Problem p, const Tensor& dy,
                                 const Tensor& d_final) {
  Tensor* const leaves[] = {&p.in.q, &p.in.k, &p.in.v, &p.in.log_decay, &p.initial};
  return test::tape_gradients(base, leaves, dy, d_final, [&](Context& ctx) {
    return linear_attention(ctx, p.in, p.initial, p.batch, p.options);
  });
}

std::vector<double> complex_gradient(const Problem& p, size_t which, const Tensor& dy,
                                     const Tensor& d_final) {
  auto in = reference_of<Complex>(p, 0);
  std::vector<Complex>* const fields[] = {&in.q, &in.k, &in.v, &in.log_decay, &in.initial};
  std::vector<Complex>& field = *fields[which];
  return test::reference_gradient(field, dy, d_final,
                                  [&] { return reference::linear_attention(in); });
}

void check_gradients() {
  const LinearAttentionOptions o{.heads = 2, .key_dim = 5, .value_dim = 3, .chunk = 4};
  for (const DecayKind decay : {DecayKind::kNone, DecayKind::kConstant, DecayKind::kPerToken}) {
    for (const int64_t length : {2, 19}) {
      const Problem p = make_problem({"", {length}, o, decay}, 21, /*start=*/3);
      const Tensor dy = randn(p.in.v.shape(), 31), d_final = randn(p.initial.shape(), 32);
      for (const Form form : kForms) {
        Context ctx = make_context(2, form);
        const auto got = gradients_of(ctx, p, dy, d_final);
        for (size_t i = 0; i < 5; ++i) {
          if (i == 3 && decay == DecayKind::kNone) continue;
          // A decay gathers from all later tokens and the whole state of its head.
          const int64_t terms = i == 3 ? length * o.key_dim * o.value_dim : 64;
          expect_close(got[i], complex_gradient(p, i, dy, d_final), tolerance(DType::kF32, terms),
                       kNames[i]);
        }
      }
    }
  }
}

TEST(LinearAttention, GradientsMatchComplexStep) { on_every_target(check_gradients); }

TEST(LinearAttention, GradientsOfBothFormsAgreeOnPackedSequencesAndLargeHeads) {
  const LinearAttentionCase cases[] = {
      {"packed", {70, 0, 1, 65}, {.heads = 2, .key_dim = 20, .value_dim = 40}},
      {"large", {90}, {.heads = 1, .key_dim = 256, .value_dim = 512}, DecayKind::kConstant}};
  for (const LinearAttentionCase& c : cases) {
    const Problem p = make_problem(c, 41);
    const Tensor dy = randn(p.in.v.shape(), 51), d_final = randn(p.initial.shape(), 52);
    Context recurrent = make_context(1, Form::kRecurrent), chunked = make_context(3);
    const auto want = gradients_of(recurrent, p, dy, d_final);
    const auto got = gradients_of(chunked, p, dy, d_final);
    for (size_t i = 0; i < 5; ++i) {
      expect_close(got[i], want[i], tolerance(DType::kF32, c.options.key_dim * c.options.value_dim),
                   kNames[i]);
    }
  }
}

TEST(LinearAttention, DividesEachHeadByItsNormaliser) {
  Context ctx = make_context();
  for (const int64_t value_dim : {1, 5, 64, 65}) {
    Tensor y = randn({7, 3 * value_dim + 2}, 1).slice_columns(1, 1 + 3 * value_dim);
    Tensor n = randn({7, 3}, 2);
    for (int64_t i = 0; i < n.count(); ++i) n.f32()[i] = std::abs(n.f32()[i]) + 0.5f;
    const auto y_values = values(y), n_values = values(n);
    const Tensor dout = randn(y.shape(), 3);
    Tape tape;
    tape.watch(y);
    tape.watch(n);
    Context taped = ctx.with_tape(&tape);
    const Tensor out = divide_heads(taped, y, n, 0.25f);
    tape.backward(ctx, {out}, {dout});
    const double tol = tolerance(DType::kF32, value_dim);
    expect_close(out, reference::divide_heads(y_values, n_values, 0.25), tol, "out");
    const auto dy = complex_step(y_values, [&](const std::vector<Complex>& z) {
      return dot(reference::divide_heads(z, as<Complex>(n_values), 0.25), values(dout));
    });
    const auto dn = complex_step(n_values, [&](const std::vector<Complex>& z) {
      return dot(reference::divide_heads(as<Complex>(y_values), z, 0.25), values(dout));
    });
    expect_close(tape.grad(y), dy, tol, "dy");
    expect_close(tape.grad(n), dn, tol, "dn");
  }
}

TEST(LinearAttention, RefusesWrongShapes) {
  const Problem p = make_problem({"", {4}, {.heads = 2, .key_dim = 3, .value_dim = 5}}, 1);
  Context ctx = make_context();
  LinearAttentionInputs wrong = p.in;
  wrong.k = wrong.v;
  EXPECT_THROW(linear_attention(ctx, wrong, {}, p.batch, p.options), Error);
  wrong = p.in;
  wrong.log_decay = randn({3}, 1);
  EXPECT_THROW(linear_attention(ctx, wrong, {}, p.batch, p.options), Error);
  EXPECT_THROW(linear_attention(ctx, p.in, p.in.v, p.batch, p.options), Error);
  EXPECT_THROW(linear_attention_in_place(ctx, p.in, {}, p.batch, p.options), Error);
  EXPECT_THROW(divide_heads(ctx, p.in.v, randn({4, 3}, 1), 0), Error);
}

}  // namespace
}  // namespace braid
