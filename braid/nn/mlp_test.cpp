// Goal: the plain feed-forward computes what its header says, for every function it can have, and
// so does its gradient where differences cannot be taken (relu has a corner). Method: both
// products and the function's derivative written out in float64, beside forward and vjp.

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "braid/core/tape.h"
#include "braid/nn/sublayer.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

constexpr int64_t kWidth = 16, kHidden = 24, kTokens = 33;

struct Function {
  const char* name;
  double (*f)(double x);
  double (*slope)(double x);
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }

const Function kFunctions[] = {
    {"relu2", [](double x) { return x > 0 ? x * x : 0; },
     [](double x) { return x > 0 ? 2 * x : 0; }},
    {"relu", [](double x) { return x > 0 ? x : 0; }, [](double x) { return x > 0 ? 1.0 : 0; }},
    {"gelu", [](double x) { return x * normal_cdf(x); },
     [](double x) { return normal_cdf(x) + x * normal_density(x); }},
    {"silu", [](double x) { return x * sigmoid(x); },
     [](double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }}};

// a (n, k) times b^T, b (m, k); or times b itself, b (k, m), where not `turned`.
std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b, int64_t k,
                          bool turned) {
  const auto K = static_cast<size_t>(k);
  const size_t n = a.size() / K, m = b.size() / K;
  std::vector<double> y(n * m, 0.0);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < m; ++j) {
      for (size_t d = 0; d < K; ++d) {
        y[i * m + j] += a[i * K + d] * (turned ? b[j * K + d] : b[d * m + j]);
      }
    }
  }
  return y;
}

TEST(Mlp, IsItsFormulaAndSoIsItsGradient) {
  const Tensor x = randn({kTokens, kWidth}, 1), dy = randn({kTokens, kWidth}, 2);
  for (const Function& function : kFunctions) {
    SCOPED_TRACE(function.name);
    Context ctx;
    const SublayerSpec spec{
        .name = "mlp",
        .args = {{.key = "hidden", .value = "24"}, {.key = "act", .value = function.name}}};
    const auto mlp = make_sublayer(spec, {.width = kWidth});
    std::vector<std::vector<double>> weights;
    for (Parameter* p : mlp->parameters()) {
      initialize_parameter(ctx, *p, Rng(3).fork(weights.size()), {.trainable = true});
      weights.push_back(values(p->value));
    }
    const std::vector<double> u = times(values(x), weights[0], kWidth, true);
    std::vector<double> du = times(values(dy), weights[1], kWidth, false), h = u;
    for (size_t i = 0; i < u.size(); ++i) {
      h[i] = function.f(u[i]);
      du[i] *= function.slope(u[i]);
    }

    Tape tape;
    Tensor given = x;
    tape.watch(given);
    Context taped = ctx.with_tape(&tape);
    const SequenceBatch batch = SequenceBatch::single(kTokens);
    Stream stream(batch);
    const Tensor y = mlp->forward(taped, given, stream, nullptr);
    tape.backward(ctx, {y}, {dy});
    const double tol = tolerance(DType::kF32, kHidden + kWidth);
    expect_close(y, times(h, weights[1], kHidden, true), tol, "y");
    expect_close(tape.grad(given), times(du, weights[0], kHidden, false), tol, "dx");
  }
}

}  // namespace
}  // namespace braid
