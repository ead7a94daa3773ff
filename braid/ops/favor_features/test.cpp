// Goal: the features equal their reference with all gradients, cut anywhere and beside any other
// sequence, and approximate the softmax kernel. Method: naive float64 loop, complex step on it; the
// mean of many features against the exponential.

#include "braid/core/tape.h"
#include "braid/ops/favor_features/cases.h"
#include "braid/ops/favor_features/favor_features.h"
#include "braid/ops/favor_features/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

SequenceBatch batch_of(const FavorCase& c) {
  SequenceBatch batch;
  for (const int64_t length : c.lengths) batch.add(length, 0);
  return batch;
}

Tensor input(const FavorCase& c, uint64_t seed) {
  const int64_t width = c.options.heads * c.options.dim;
  return randn({batch_of(c).tokens(), width + 2}, seed, 1.5f).slice_columns(1, 1 + width);
}

Tensor drawn(const FavorOptions& o) { return randn({o.features, o.dim}, 9); }

reference::Favor<double> want_of(const FavorCase& c, const Tensor& x, const Tensor& initial,
                                 bool keys) {
  const SequenceBatch batch = batch_of(c);
  reference::Favor<double> all;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const auto i = static_cast<size_t>(s);
    const Tensor rows = x.slice_rows(batch.offsets[i], batch.offsets[i + 1]);
    const auto start =
        initial.defined() ? values(initial.slice_rows(s, s + 1)) : std::vector<double>{};
    const auto one =
        reference::favor(values(rows), values(drawn(c.options)), start, c.options.heads,
                         c.options.dim, static_cast<double>(c.options.eps), keys);
    all.features.insert(all.features.end(), one.features.begin(), one.features.end());
    all.log_decay.insert(all.log_decay.end(), one.log_decay.begin(), one.log_decay.end());
    all.maximum.insert(all.maximum.end(), one.maximum.begin(), one.maximum.end());
  }
  return all;
}

TEST(FavorFeatures, MatchTheReference) {
  Context ctx({.threads = 2, .poison = true});
  for (const FavorCase& c : favor_test_cases()) {
    const Tensor x = input(c, 1), w = drawn(c.options);
    const SequenceBatch batch = batch_of(c);
    // Roundings of the scores, which an exponential turns into relative ones.
    const double tol = tolerance(DType::kF32, 16 * c.options.dim);
    expect_close(favor_queries(ctx, x, w, c.options), want_of(c, x, {}, false).features, tol, "q");
    for (const bool carried : {false, true}) {
      const Tensor initial = carried ? randn({batch.sequences(), c.options.heads}, 2) : Tensor();
      const FavorKeys got = favor_keys(ctx, x, w, initial, batch, c.options);
      const auto want = want_of(c, x, initial, true);
      expect_close(got.features, want.features, tol, "k");
      expect_close(got.maximum, want.maximum, tol, "maximum");
      // A decay is a difference of maxima.
      if (batch.tokens() > 1) expect_close(got.log_decay, want.log_decay, 8 * tol, "log_decay");
    }
  }
}

TEST(FavorFeatures, GradientsMatchComplexStep) {
  const FavorCase c{{9}, {.heads = 2, .dim = 3, .features = 5, .eps = 0.01f}};
  const SequenceBatch batch = batch_of(c);
  Context ctx({.threads = 2, .poison = true});
  const Tensor w = drawn(c.options);
  const Tensor d_features = randn({9, 10}, 3), d_log = randn({9, 2}, 4), d_max = randn({1, 2}, 5);
  const auto loss = [&](const std::vector<Complex>& x, const std::vector<Complex>& initial,
                        bool keys) {
    const auto out =
        reference::favor(x, values(w), initial, 2, 3, static_cast<double>(c.options.eps), keys);
    const Complex features = dot(out.features, values(d_features));
    if (!keys) return features;
    return features + dot(out.log_decay, values(d_log)) + dot(out.maximum, values(d_max));
  };
  for (const int kind : {0, 1, 2}) {  // queries, keys from nothing, keys from a maximum
    Tensor x = input(c, 1),
           initial = kind == 2 ? host_tensor<float>({0.4f, 1.1f}, {1, 2}) : Tensor();
    const auto x_values = values(x);
    const auto start = kind == 2 ? values(initial) : std::vector<double>{};
    Tape tape;
    tape.watch(x);
    if (kind == 2) tape.watch(initial);
    Context taped = ctx.with_tape(&tape);
    if (kind == 0) {
      const Tensor y = favor_queries(taped, x, w, c.options);
      tape.backward(ctx, {y}, {d_features});
    } else {
      const FavorKeys y = favor_keys(taped, x, w, initial, batch, c.options);
      tape.backward(ctx, {y.features, y.log_decay, y.maximum}, {d_features, d_log, d_max});
    }
    const auto dx = complex_step(x_values, [&](const std::vector<Complex>& z) {
      return loss(z, as<Complex>(start), kind > 0);
    });
    expect_close(tape.grad(x), dx, tolerance(DType::kF32, 64), "dx");
    if (kind != 2) continue;
    const auto d_initial = complex_step(
        start, [&](const std::vector<Complex>& z) { return loss(as<Complex>(x_values), z, true); });
    expect_close(tape.grad(initial), d_initial, tolerance(DType::kF32, 64), "d initial");
  }
}

TEST(FavorFeatures, BitsDependOnNeitherCutsNorNeighboursNorThreads) {
  const FavorCase c{{70, 3, 40}, {.heads = 3, .dim = 17, .features = 63}};
  const SequenceBatch batch = batch_of(c);
  const Tensor x = input(c, 1), w = drawn(c.options);
  Context one({.threads = 1}), three({.threads = 3});
  const FavorKeys want = favor_keys(one, x, w, {}, batch, c.options);
  const Tensor queries = favor_queries(one, x, w, c.options);
  EXPECT_TRUE(same_bits(favor_queries(three, x, w, c.options), queries));
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t first = batch.offsets[static_cast<size_t>(s)], length = batch.length(s);
    for (const int64_t piece : {1, 5, 32}) {
      std::vector<float> maximum(3, 0.0f);
      float* const states[] = {maximum.data()};
      for (int64_t t = 0; t < length; t += piece) {
        const int64_t n = std::min(piece, length - t), at = first + t;
        const FavorKeys got = favor_keys_in_place(three, x.slice_rows(at, at + n), w, states,
                                                  SequenceBatch::single(n, t), c.options);
        ASSERT_TRUE(same_bits(got.features, want.features.slice_rows(at, at + n)));
        ASSERT_TRUE(same_bits(got.log_decay, want.log_decay.slice_rows(at, at + n)));
        ASSERT_TRUE(same_bits(favor_queries(three, x.slice_rows(at, at + n), w, c.options),
                              queries.slice_rows(at, at + n)));
      }
      EXPECT_EQ(maximum,
                std::vector<float>(want.maximum.f32() + 3 * s, want.maximum.f32() + 3 * s + 3));
    }
  }
}

// phi(q) . phi(k), with the stabilisers put back, is a mean of M independent terms that each have
// the expectation exp(q . k / sqrt(K)) and the variance e^(2 q.k) (e^|q + k|^2 - 1), with q and k
// scaled: six standard errors.
TEST(FavorFeatures, ApproximateTheSoftmaxKernel) {
  const FavorOptions o{.heads = 1, .dim = 4, .features = 200000, .eps = 0};
  const Tensor q = randn({1, 4}, 1, 0.6f), k = randn({1, 4}, 2, 0.6f), w = drawn(o);
  Context ctx({.threads = 2});
  const auto of = [&](const Tensor& x, double* c) {
    const FavorKeys keys = favor_keys(ctx, x, w, {}, SequenceBatch::single(1), o);
    *c = values(keys.maximum)[0];
    return values(keys.features);
  };
  double c_q = 0, c_k = 0, dot_qk = 0, square = 0;
  const double got = dot(of(q, &c_q), of(k, &c_k)) * std::exp(c_q + c_k);
  for (int64_t i = 0; i < 4; ++i) {
    const double u = q.f32()[i] / std::sqrt(2.0), v = k.f32()[i] / std::sqrt(2.0);
    dot_qk += u * v;
    square += (u + v) * (u + v);
  }
  const double error = std::exp(dot_qk) * std::sqrt((std::exp(square) - 1) / 200000);
  EXPECT_NEAR(got, std::exp(dot_qk), 6 * error);
}

TEST(FavorFeatures, RefuseWrongShapes) {
  Context ctx({.threads = 1});
  const FavorOptions o{.heads = 2, .dim = 3, .features = 5};
  const Tensor x = randn({4, 6}, 1);
  EXPECT_THROW(favor_queries(ctx, x, randn({5, 4}, 1), o), Error);
  EXPECT_THROW(favor_queries(ctx, randn({4, 5}, 1), drawn(o), o), Error);
  EXPECT_THROW(favor_keys(ctx, x, drawn(o), {}, SequenceBatch::single(3), o), Error);
  EXPECT_THROW(favor_keys_in_place(ctx, x, drawn(o), {}, SequenceBatch::single(4), o), Error);
}

}  // namespace
}  // namespace braid
