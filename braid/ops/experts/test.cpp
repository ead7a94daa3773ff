// The evaluation of experts: against the naive sum, bit for bit against `linear` and between
// batches and thread counts, and its gradients by complex step.
#include <algorithm>
#include <cmath>
#include <limits>

#include "braid/ops/experts/cases.h"
#include "braid/ops/experts/experts.h"
#include "braid/ops/experts/reference.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/swiglu/swiglu.h"
#include "tests/support/bits.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using test::Complex;

constexpr ExpertActivation kActivations[] = {ExpertActivation::kSwiglu, ExpertActivation::kRelu2,
                                             ExpertActivation::kRelu, ExpertActivation::kGelu,
                                             ExpertActivation::kSilu};

Tensor rounded(Tensor x, DType dtype) {
  if (dtype != DType::kBF16) return x;
  for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] = to_float(to_bf16(x.f32()[i]));
  return x;
}

// k different experts a token, about one slot in five without one.
std::vector<int32_t> random_ids(const cases::Experts& c, uint64_t seed) {
  const Rng rng(seed);
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < c.tokens; ++n) {
    const auto first = static_cast<int64_t>(rng.below(static_cast<uint64_t>(n), 1 << 20));
    for (int64_t j = 0; j < c.slots; ++j) {
      const bool none = j >= c.experts || (first + 3 * j) % 5 == 0;
      ids.push_back(none ? -1 : static_cast<int32_t>((first + j) % c.experts));
    }
  }
  return ids;
}

// A layer of random experts and what it is applied to.
struct Problem {
  cases::Experts size;
  reference::ExpertShape shape;
  std::vector<int32_t> ids;
  Tensor x, weights, in, out;  // (N, D), (N, k), (E, 2F or F, D), (E, D, F)

  Problem(const cases::Experts& c, ExpertActivation activation, DType dtype)
      : size(c),
        shape{c.tokens, c.slots, c.experts, c.width, c.hidden, activation},
        ids(random_ids(c, 7)),
        x(rounded(test::randn({c.tokens, c.width}, 1), dtype)),
        weights(test::randn({c.tokens, c.slots}, 2)) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.width));
    in = rounded(test::randn({c.experts * shape.in_rows(), c.width}, 3, 2 * scale), dtype);
    out = rounded(test::randn({c.experts * c.width, c.hidden}, 4, scale), dtype);
  }

  Tensor id_tensor() const { return host_tensor(ids, {size.tokens, size.slots}); }
  Tensor in_of(int64_t e) const {
    return in.slice_rows(e * shape.in_rows(), (e + 1) * shape.in_rows());
  }
  Tensor out_of(int64_t e) const { return out.slice_rows(e * size.width, (e + 1) * size.width); }
  std::vector<Expert> experts(Context& ctx, DType dtype, bool trainable = false) const {
    const WeightOptions options{.packed_dtype = dtype, .trainable = trainable};
    std::vector<Expert> all;
    for (int64_t e = 0; e < size.experts; ++e) {
      all.push_back({Weight::make(ctx, in_of(e), options), Weight::make(ctx, out_of(e), options)});
    }
    return all;
  }
  std::vector<double> reference() const {
    return reference::experts(shape, ids, test::values(x), test::values(weights), test::values(in),
                              test::values(out));
  }
  bool is_hit(int64_t e) const { return std::ranges::find(ids, e) != ids.end(); }
};

class Experts : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  Context& ctx() { return ctx_; }
  // In bfloat16 the hidden values are rounded too, where the machine has its products.
  double tol(const cases::Experts& c) const {
    return test::tolerance(dtype(), dtype() == DType::kF32 ? c.width + c.hidden + c.slots : 1);
  }

 private:
  Context ctx_{{.threads = 2, .poison = true}};
};

TEST_P(Experts, MatchesTheReference) {
  for (const auto& size : cases::kExpertsOdd) {
    for (const auto activation : kActivations) {
      SCOPED_TRACE(testing::Message() << size.tokens << " " << size.width << " " << size.hidden
                                      << " activation " << static_cast<int>(activation));
      const Problem p(size, activation, dtype());
      const std::vector<double> want = p.reference();
      test::on_every_target([&] {
        const auto layer = p.experts(ctx(), dtype());
        const Tensor y = experts(ctx(), p.x, p.id_tensor(), p.weights, layer, activation);
        EXPECT_EQ(y.shape(), p.x.shape());
        test::expect_close(y, want, tol(size), "y");
      });
    }
  }
}

// The products of one row are those of `linear`, which fixes every bit of it.
TEST_P(Experts, RowsHaveTheBitsOfLinear) {
  for (const cases::Experts size : {cases::Experts{40, 3, 5, 65, 33},
                                    {150, 2, 2, 600, 96},
                                    {20, 1, 2, 640, 1700},
                                    {500, 1, 1, 40, 33}}) {
    const Problem p(size, ExpertActivation::kSwiglu, dtype());
    test::on_every_target([&] {
      const auto layer = p.experts(ctx(), dtype());
      for (size_t e = 0; e < layer.size(); ++e) {
        std::vector<int64_t> offsets(layer.size() + 1);
        std::fill(offsets.begin() + static_cast<std::ptrdiff_t>(e) + 1, offsets.end(), size.tokens);
        const Tensor h = swiglu(ctx(), linear(ctx(), p.x, layer[e].in));
        ASSERT_TRUE(test::same_bits(expert_rows(ctx(), p.x, offsets, layer, p.shape.activation),
                                    linear(ctx(), h, layer[e].out)));
      }
    });
  }
}

TEST_P(Experts, TheSumIsOneChainOverTheSlots) {
  if (!test::bits_are_promised()) GTEST_SKIP() << "bits are promised on AVX-512";
  const cases::Experts size{40, 3, 5, 65, 33};
  const Problem p(size, ExpertActivation::kSwiglu, dtype());
  const auto layer = p.experts(ctx(), dtype());
  const Tensor y = experts(ctx(), p.x, p.id_tensor(), p.weights, layer, p.shape.activation);
  Tensor want = ctx().zeros(p.x.shape());
  for (int64_t n = 0; n < size.tokens; ++n) {
    for (int64_t j = 0; j < size.slots; ++j) {
      const int32_t e = p.ids[static_cast<size_t>(n * size.slots + j)];
      if (e < 0) continue;
      const Expert& expert = layer[static_cast<size_t>(e)];
      const Tensor pre = linear(ctx(), p.x.slice_rows(n, n + 1), expert.in);
      const Tensor row = linear(ctx(), swiglu(ctx(), pre), expert.out);
      for (int64_t i = 0; i < size.width; ++i) {
        float& sum = want.f32()[n * size.width + i];
        sum = std::fma(p.weights.f32()[n * size.slots + j], row.f32()[i], sum);
      }
    }
  }
  EXPECT_TRUE(test::same_bits(y, want));
}

TEST_P(Experts, RowsAreTheSameBitsInEveryBatchOnAnyNumberOfThreads) {
  for (const cases::Experts size : {cases::Experts{97, 3, 6, 70, 45}, {97, 2, 2, 300, 320}}) {
    const Problem p(size, ExpertActivation::kSwiglu, dtype());
    const auto layer = p.experts(ctx(), dtype());
    const Tensor ids = p.id_tensor();
    const Tensor whole = experts(ctx(), p.x, ids, p.weights, layer, p.shape.activation);
    for (const int threads : {1, 3}) {
      Context other({.threads = threads});
      EXPECT_TRUE(
          test::same_bits(experts(other, p.x, ids, p.weights, layer, p.shape.activation), whole));
    }
    for (const int64_t piece : {1, 2, 5, 14, 16, 40}) {
      for (int64_t i = 0; i < size.tokens; i += piece) {
        const int64_t end = std::min(size.tokens, i + piece);
        ASSERT_TRUE(
            test::same_bits(experts(ctx(), p.x.slice_rows(i, end), ids.slice_rows(i, end),
                                    p.weights.slice_rows(i, end), layer, p.shape.activation),
                            whole.slice_rows(i, end)))
            << "rows " << i << " to " << end;
      }
    }
  }
}

TEST_P(Experts, StridedOperandsAreTheSame) {
  const cases::Experts size{17, 2, 3, 20, 12};
  const Problem p(size, ExpertActivation::kGelu, dtype());
  const auto layer = p.experts(ctx(), dtype());
  const auto pad = [](const Tensor& x) {
    Tensor wide = test::randn({x.rows(), x.dim(1) + 3}, 9);
    for (int64_t i = 0; i < x.rows(); ++i) {
      std::copy_n(x.f32() + i * x.dim(1), x.dim(1), wide.f32() + i * wide.dim(1) + 1);
    }
    return wide.slice_columns(1, x.dim(1) + 1);
  };
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < size.tokens; ++n) {
    ids.insert(ids.end(),
               {p.ids[static_cast<size_t>(2 * n)], p.ids[static_cast<size_t>(2 * n + 1)], 1000});
  }
  const Tensor wide_ids = host_tensor(ids, {size.tokens, 3}).slice_columns(0, 2);
  EXPECT_TRUE(
      test::same_bits(experts(ctx(), pad(p.x), wide_ids, pad(p.weights), layer, p.shape.activation),
                      experts(ctx(), p.x, p.id_tensor(), p.weights, layer, p.shape.activation)));
}

TEST_P(Experts, InnerAndOuterStepAreTheWhole) {
  const cases::Experts size{50, 3, 7, 64, 24};
  const Problem p(size, ExpertActivation::kSwiglu, dtype());
  const auto layer = p.experts(ctx(), dtype());
  std::vector<float> sorted;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> place(p.ids.size(), -1);
  int32_t rows = 0;
  for (int32_t e = 0; e < size.experts; ++e) {
    for (size_t slot = 0; slot < p.ids.size(); ++slot) {
      if (p.ids[slot] != e) continue;
      place[slot] = rows++;
      const float* row = p.x.f32() + static_cast<int64_t>(slot) / size.slots * size.width;
      sorted.insert(sorted.end(), row, row + size.width);
    }
    offsets.push_back(rows);
  }
  const Tensor y = expert_rows(ctx(), host_tensor(sorted, {rows, size.width}), offsets, layer,
                               p.shape.activation);
  const Tensor sum =
      combine_expert_rows(ctx(), y, host_tensor(place, {size.tokens, size.slots}), p.weights);
  EXPECT_TRUE(test::same_bits(
      sum, experts(ctx(), p.x, p.id_tensor(), p.weights, layer, p.shape.activation)));
}

// Experts without a token are neither asked for nor read, so what is in them cannot matter.
TEST_P(Experts, OnlyExpertsThatAreHitAreRead) {
  const cases::Experts size{3, 2, 40, 40, 16};
  const Problem p(size, ExpertActivation::kSwiglu, dtype());
  for (int64_t e = 0; e < size.experts; ++e) {
    if (p.is_hit(e)) continue;
    std::fill_n(p.in_of(e).f32(), p.in_of(e).count(), NAN);
    std::fill_n(p.out_of(e).f32(), p.out_of(e).count(), NAN);
  }
  const auto layer = p.experts(ctx(), dtype());
  const Tensor y = experts(ctx(), p.x, p.id_tensor(), p.weights, layer, p.shape.activation);
  for (const double v : test::values(y)) ASSERT_TRUE(std::isfinite(v));
  const ExpertList list(size.experts, [&](int64_t e) {
    EXPECT_TRUE(e == 0 || p.is_hit(e)) << e;
    return layer[static_cast<size_t>(e)];
  });
  EXPECT_TRUE(
      test::same_bits(experts(ctx(), p.x, p.id_tensor(), p.weights, list, p.shape.activation), y));
}

TEST_P(Experts, AStepAllocatesNothingAfterTheFirst) {
  const cases::Experts size{4, 2, 9, 70, 40};
  const Problem p(size, ExpertActivation::kSwiglu, dtype());
  const auto layer = p.experts(ctx(), dtype());
  const Tensor ids = p.id_tensor();
  const auto step = [&] { experts(ctx(), p.x, ids, p.weights, layer, p.shape.activation); };
  step();
  const size_t before = ctx().arena().allocations();
  step();
  EXPECT_EQ(ctx().arena().allocations(), before);
}

// Gradients of x, weights and every expert that was hit; none of the others.
void check_gradients(Context& ctx, const Problem& p, DType dtype, double tol) {
  Tensor x = p.x, weights = p.weights;
  Tape tape;
  std::vector<Expert> layer = p.experts(ctx, dtype, true);
  tape.watch(x);
  tape.watch(weights);
  uint64_t id = 1;  // of parameters
  for (Expert& e : layer) {
    e.in.set_grad_id(id++);
    e.out.set_grad_id(id++);
  }
  Context taped = ctx.with_tape(&tape);
  const Tensor y = experts(taped, x, p.id_tensor(), weights, layer, p.shape.activation);
  const Tensor dy = rounded(test::randn(y.shape(), 5), dtype);
  tape.backward(ctx, {y}, {dy});
  const auto vx = test::values(x), vw = test::values(weights), vin = test::values(p.in),
             vout = test::values(p.out), vdy = test::values(dy);
  const auto loss = [&](const auto& a, const auto& b, const auto& c, const auto& d) {
    return test::dot(reference::experts(p.shape, p.ids, a, b, c, d), vdy);
  };
  const auto cx = test::as<Complex>(vx), cw = test::as<Complex>(vw);
  const auto cin = test::as<Complex>(vin), cout = test::as<Complex>(vout);
  const auto dx = test::complex_step(vx, [&](const auto& z) { return loss(z, cw, cin, cout); });
  test::expect_close(tape.grad(x), dx, tol, "dx");
  test::expect_close(tape.grad(weights),
                     test::complex_step(vw, [&](const auto& z) { return loss(cx, z, cin, cout); }),
                     tol, "dweights");
  const auto din = test::complex_step(vin, [&](const auto& z) { return loss(cx, cw, z, cout); });
  const auto dout = test::complex_step(vout, [&](const auto& z) { return loss(cx, cw, cin, z); });
  std::vector<double> got_in, got_out;
  for (int64_t e = 0; e < p.size.experts; ++e) {
    const Expert& expert = layer[static_cast<size_t>(e)];
    ASSERT_EQ(tape.grad(expert.in.plain()).defined(), p.is_hit(e)) << e;
    ASSERT_EQ(tape.grad(expert.out.plain()).defined(), p.is_hit(e)) << e;
    for (const auto& [weight, all] : {std::pair(expert.in, &got_in), {expert.out, &got_out}}) {
      const auto g = p.is_hit(e) ? test::values(tape.grad(weight.plain()))
                                 : std::vector<double>(static_cast<size_t>(weight.plain().count()));
      all->insert(all->end(), g.begin(), g.end());
    }
  }
  test::expect_close(got_in, din, tol, "din");
  test::expect_close(got_out, dout, tol, "dout");
}

TEST_P(Experts, GradientsMatchComplexStep) {
  for (const cases::Experts size :
       {cases::Experts{3, 2, 5, 5, 3}, {9, 3, 2, 3, 5}, {33, 1, 3, 4, 2}, {7, 1, 2, 3, 1}}) {
    for (const auto activation : kActivations) {
      SCOPED_TRACE(testing::Message()
                   << size.tokens << " tokens, activation " << static_cast<int>(activation));
      const double length = static_cast<double>(size.width + size.hidden + size.tokens);
      const Problem p(size, activation, dtype());
      test::on_every_target([&] {
        check_gradients(ctx(), p, dtype(), test::tolerance(dtype(), static_cast<int64_t>(length)));
      });
    }
  }
}

std::vector<Tensor> gradients(Context& ctx, const Problem& p, DType dtype, bool trainable) {
  Tensor x = p.x, weights = p.weights;
  Tape tape;
  tape.watch(x);
  tape.watch(weights);
  std::vector<Expert> layer = p.experts(ctx, dtype, trainable);
  for (size_t e = 0; trainable && e < layer.size(); ++e) {
    layer[e].in.set_grad_id(2 * e + 1);
    layer[e].out.set_grad_id(2 * e + 2);
  }
  Context taped = ctx.with_tape(&tape);
  const Tensor y = experts(taped, x, p.id_tensor(), weights, layer, p.shape.activation);
  tape.backward(ctx, {y}, {test::randn(y.shape(), 5)});
  std::vector<Tensor> all = {tape.grad(x), tape.grad(weights)};
  for (size_t e = 0; trainable && e < layer.size(); ++e) {
    if (!p.is_hit(static_cast<int64_t>(e))) continue;
    all.push_back(tape.grad(layer[e].in.plain()));
    all.push_back(tape.grad(layer[e].out.plain()));
  }
  return all;
}

TEST_P(Experts, FrozenExpertsStillGiveTheOtherGradients) {
  const Problem p({21, 2, 4, 37, 9}, ExpertActivation::kSwiglu, dtype());
  const auto frozen = gradients(ctx(), p, dtype(), false);
  const auto trained = gradients(ctx(), p, dtype(), true);
  for (size_t i = 0; i < frozen.size(); ++i) EXPECT_TRUE(test::same_bits(frozen[i], trained[i]));
}

TEST_P(Experts, GradientsDoNotDependOnThreads) {
  // Nine groups: side by side where threads are few, one after the other where they are many.
  const Problem p({120, 3, 9, 50, 40}, ExpertActivation::kSwiglu, dtype());
  const auto want = gradients(ctx(), p, dtype(), true);
  for (const int threads : {1, 3}) {
    Context other({.threads = threads, .poison = true});
    const auto got = gradients(other, p, dtype(), true);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(test::same_bits(got[i], want[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, Experts, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

TEST(ExpertsErrors, RefusesWhatDoesNotFit) {
  Context ctx({.threads = 1});
  const Problem p({2, 2, 3, 6, 4}, ExpertActivation::kSwiglu, DType::kF32);
  auto layer = p.experts(ctx, DType::kF32);
  const auto run = [&](const Tensor& x, std::vector<int32_t> ids, const Tensor& weights) {
    return experts(ctx, x, host_tensor(std::move(ids), {2, 2}), weights, layer,
                   ExpertActivation::kSwiglu);
  };
  EXPECT_NO_THROW(run(p.x, {0, 1, 2, -1}, p.weights));
  EXPECT_THROW(run(p.x, {0, 1, 2, 3}, p.weights), Error);
  EXPECT_THROW(run(p.x, {0, 1, 2, -2}, p.weights), Error);
  EXPECT_THROW(run(test::randn({2, 5}, 1), {0, 1, 2, 0}, p.weights), Error);
  EXPECT_THROW(run(test::randn({3, 6}, 1), {0, 1, 2, 0}, p.weights), Error);
  EXPECT_THROW(run(p.x, {0, 1, 2, 0}, test::randn({2, 3}, 1)), Error);
  EXPECT_THROW(experts(ctx, p.x, p.id_tensor(), p.weights, {}, ExpertActivation::kSwiglu), Error);
  const std::vector<int64_t> falling = {0, 2, 1, 2}, shorter = {0, 1, 2};
  EXPECT_THROW(expert_rows(ctx, p.x, falling, layer, ExpertActivation::kSwiglu), Error);
  EXPECT_THROW(expert_rows(ctx, p.x, shorter, layer, ExpertActivation::kSwiglu), Error);
  layer[1].out = Weight::make(ctx, test::randn({6, 5}, 1));
  EXPECT_THROW(run(p.x, {0, 1, 2, -1}, p.weights), Error);
}

}  // namespace
}  // namespace braid
