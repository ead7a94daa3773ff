// layer_norm against its reference and its gradients against complex step.

#include "braid/ops/layer_norm/cases.h"
#include "braid/ops/layer_norm/layer_norm.h"
#include "braid/ops/layer_norm/reference.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

constexpr float kEps = 1e-5f;

template <class T>
std::vector<Complex> as_complex(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

TEST(LayerNorm, MatchesReferenceOnStridedRows) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, width] : cases::kLayerNormTest) {
    const Tensor x = randn({rows, width + 5}, 1).slice_columns(2, 2 + width);
    const Tensor w = randn({width}, 2), b = randn({width}, 3);
    const double tol = tolerance(DType::kF32, width);
    expect_close(layer_norm(ctx, x, w, b, kEps),
                 reference::layer_norm(values(x), values(w), values(b), kEps), tol, "y");
    const std::vector<double> none(static_cast<size_t>(width));
    expect_close(layer_norm(ctx, x, w, Tensor{}, kEps),
                 reference::layer_norm(values(x), values(w), none, kEps), tol, "y without b");
  }
}

TEST(LayerNorm, GradientsMatchComplexStep) {
  Context ctx(ContextOptions{.threads = 2, .poison = true});
  for (const auto& [rows, width] : std::vector<cases::LayerNorm>{{1, 3}, {37, 5}, {2, 65}}) {
    Tape tape;
    Tensor x = randn({rows, width}, 3), w = randn({width}, 4), b = randn({width}, 5);
    const auto xs = values(x), ws = values(w), bs = values(b);
    const auto dy = values(randn({rows, width}, 6));
    for (Tensor* leaf : {&x, &w, &b}) tape.watch(*leaf);
    Context taped = ctx.with_tape(&tape);
    const Tensor y = layer_norm(taped, x, w, b, kEps);
    tape.backward(ctx, {y}, {randn({rows, width}, 6)});

    const auto loss = [&](const auto& zx, const auto& zw, const auto& zb) {
      return dot(reference::layer_norm(as_complex(zx), as_complex(zw), as_complex(zb), kEps), dy);
    };
    using Z = std::vector<Complex>;
    const auto dx = complex_step(xs, [&](const Z& z) { return loss(z, ws, bs); });
    const auto dw = complex_step(ws, [&](const Z& z) { return loss(xs, z, bs); });
    const auto db = complex_step(bs, [&](const Z& z) { return loss(xs, ws, z); });
    expect_close(tape.grad(x), dx, tolerance(DType::kF32, width), "dx");
    expect_close(tape.grad(w), dw, tolerance(DType::kF32, rows), "dw");
    expect_close(tape.grad(b), db, tolerance(DType::kF32, rows), "db");
  }
}

TEST(LayerNorm, RefusesOtherShapes) {
  Context ctx;
  const Tensor x = randn({2, 4}, 1), w = randn({4}, 1);
  EXPECT_THROW(layer_norm(ctx, x, randn({5}, 1), Tensor{}, kEps), Error);
  EXPECT_THROW(layer_norm(ctx, x, w, randn({3}, 1), kEps), Error);
  EXPECT_THROW(layer_norm(ctx, w, w, Tensor{}, kEps), Error);
}

}  // namespace
}  // namespace braid
