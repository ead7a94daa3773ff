// Goal: `retnet` computes what its authors' code does, with all gradients. Method: one layer of
// torchscale's MultiScaleRetention in float64 (tests/golden/ops), `y_recurrent` by its recurrent
// form, `y` and every gradient by its parallel form. The latter divides row t of head h by one more
// number, a constant to its gradient: c = max(1, sum_j |q_t k_j gamma^(t - j)| / sqrt(n_t)), n_t
// the sum of the row's decays, which the norm takes out but for its eps. So the mixer is compared
// to y_recurrent, and put together again from the ops with that divisor, to y and the gradients.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "braid/model/safetensors.h"
#include "braid/model/stack_spec.h"
#include "braid/nn/sublayer.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/linear_attention/linear_attention.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

constexpr int64_t kWidth = 64, kHeads = 4, kKeyDim = 16, kValueDim = 24;
constexpr float kEps = 1e-6f;

double gamma(int64_t head) { return 1.0 - std::exp2(-5.0 - static_cast<double>(head)); }

class RetnetParity : public ::testing::Test {
 protected:
  RetnetParity() {
    layer_ = make_sublayer(parse_stack("retnet:heads=4,value=96").at(0).branches.at(0),
                           {.width = kWidth});
    uint64_t id = 0;
    for (Parameter* p : layer_->parameters()) {
      p->value.set_grad_id(++id);
      load_parameter(ctx_, *p, {file_.tensor("w." + p->name, p->shape)}, {.trainable = true});
      parameters_[p->name] = p;
    }
  }

  // (T, width) of a (1, T, width) tensor.
  Tensor rows(const char* name) const {
    const Tensor x = file_.tensor(name);
    return x.reshape({x.dim(1), x.dim(2)});
  }
  Tensor project(Context& ctx, const Tensor& x, const char* name) const {
    return linear(ctx, x, parameters_.at(name)->weight, {});
  }

  // The mixer's formula from ops; `divisors` (T, H) is what the rows of o are divided by.
  Tensor compose(Context& ctx, const Tensor& x, const Tensor& divisors, Tensor* q_out = nullptr,
                 Tensor* k_out = nullptr) const {
    const SequenceBatch batch = SequenceBatch::single(x.rows());
    const RopeAngles angles = rope_angles(
        ctx, RopeOptions{.kind = RopeKind::kLinspace, .rotary_dim = kKeyDim, .interleaved = true},
        batch);
    const Tensor q = rope(ctx, project(ctx, x, "q_proj.weight"), kHeads, angles);
    const Tensor k = rope(ctx, scale(ctx, project(ctx, x, "k_proj.weight"), 0.25f), kHeads, angles);
    std::vector<float> log_decay;
    for (int64_t h = 0; h < kHeads; ++h) {
      log_decay.push_back(static_cast<float>(std::log(gamma(h))));
    }
    const Tensor o =
        linear_attention(ctx,
                         {.q = q,
                          .k = k,
                          .v = project(ctx, x, "v_proj.weight"),
                          .log_decay = host_tensor(log_decay, {kHeads})},
                         {}, batch, {.heads = kHeads, .key_dim = kKeyDim, .value_dim = kValueDim})
            .y;
    if (q_out != nullptr) *q_out = q;
    if (k_out != nullptr) *k_out = k;
    const Tensor normed =
        gated_rms_norm(ctx, divide_heads(ctx, o, divisors, 0), project(ctx, x, "g_proj.weight"), {},
                       {.groups = kHeads, .eps = kEps, .norm_before_gate = true});
    return project(ctx, normed, "out_proj.weight");
  }

  // sqrt(n_t), times c in the parallel form.
  Tensor divisors(bool parallel) {
    const Tensor x = rows("x");
    const int64_t T = x.rows();
    Tensor q, k;
    compose(ctx_, x, ctx_.zeros({T, kHeads}), &q, &k);
    const auto qs = values(q), ks = values(k);
    std::vector<float> out;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        double decays = 0, sum = 0;
        for (int64_t j = 0; j <= t; ++j) {
          const double decay = std::pow(gamma(h), static_cast<double>(t - j));
          double score = 0;
          for (int64_t i = 0; i < kKeyDim; ++i) {
            score += qs[static_cast<size_t>((t * kHeads + h) * kKeyDim + i)] *
                     ks[static_cast<size_t>((j * kHeads + h) * kKeyDim + i)];
          }
          decays += decay;
          sum += std::abs(score * decay);
        }
        const double c = std::max(1.0, sum / std::sqrt(decays));
        out.push_back(static_cast<float>(std::sqrt(decays) * (parallel ? c : 1.0)));
      }
    }
    return host_tensor(std::move(out), {T, kHeads});
  }

  // Gradients of all parameters and, as "x", of x.
  std::map<std::string, Tensor> gradients(
      const std::function<Tensor(Context&, const Tensor& x)>& forward) {
    Tape::Sinks sinks;
    for (const auto& [name, p] : parameters_) sinks[p->value.grad_id()] = ctx_.zeros(p->shape);
    Tape tape(&sinks);
    Tensor x = ctx_.to_host(rows("x"));
    tape.watch(x);
    Context taped = ctx_.with_tape(&tape);
    const Tensor y = forward(taped, x);
    tape.backward(ctx_, {y}, {rows("dy")});
    std::map<std::string, Tensor> out{{"x", tape.grad(x)}};
    for (const auto& [name, p] : parameters_) out[name] = sinks[p->value.grad_id()];
    return out;
  }

  Tensor run(Context& ctx, const Tensor& x) const {
    const SequenceBatch batch = SequenceBatch::single(x.rows());
    Stream stream(batch);
    return layer_->forward(ctx, x, stream, nullptr);
  }

  Context ctx_;
  SafetensorsFile file_ =
      SafetensorsFile::open(test::golden("ops/retnet_torchscale") / "case.safetensors");
  std::unique_ptr<Sublayer> layer_;
  std::map<std::string, Parameter*> parameters_;
};

// Roundings of a row: the projections, the scores and their sum, all of which the norm magnifies
// where a row's terms cancel.
const double kTolerance = tolerance(DType::kF32, kWidth + kKeyDim + 48);

TEST_F(RetnetParity, TheMixerIsTheRecurrentForm) {
  expect_close(run(ctx_, rows("x")), rows("y_recurrent"), kTolerance, "y");
}

TEST_F(RetnetParity, TheMixerIsTheSameAsItsOps) {
  const Tensor n = divisors(false);
  const double tol = tolerance(DType::kF32, 1);
  expect_close(run(ctx_, rows("x")), compose(ctx_, rows("x"), n), tol, "y");
  const auto mixer = gradients([&](Context& ctx, const Tensor& x) { return run(ctx, x); });
  const auto ops = gradients([&](Context& ctx, const Tensor& x) { return compose(ctx, x, n); });
  for (const auto& [name, gradient] : mixer) {
    expect_close(gradient, ops.at(name), 4 * tol, name.c_str());
  }
}

TEST_F(RetnetParity, WithTheParallelDivisorOutputsAndGradientsAreThoseOfTheParallelForm) {
  const Tensor n = divisors(true);
  expect_close(compose(ctx_, rows("x"), n), rows("y"), kTolerance, "y");
  const auto got = gradients([&](Context& ctx, const Tensor& x) { return compose(ctx, x, n); });
  expect_close(got.at("x"), rows("dx"), kTolerance, "dx");
  for (const auto& [name, p] : parameters_) {
    expect_close(got.at(name), file_.tensor("dw." + name), kTolerance, name.c_str());
  }
}

}  // namespace
}  // namespace braid
