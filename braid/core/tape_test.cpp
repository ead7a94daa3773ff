// Goal: gradients arrive where they belong, whole, and nobody's tensor is changed on the way.
// Method: ops of one line recorded by hand, with gradients known in closed form.

#include "braid/core/tape.h"

#include <gtest/gtest.h>

#include "braid/core/context.h"

namespace braid {
namespace {

Tensor vector_of(std::vector<float> x) {
  const auto n = static_cast<int64_t>(x.size());
  return host_tensor(std::move(x), {n});
}

std::vector<float> values(const Tensor& x) { return {x.f32(), x.f32() + x.count()}; }

using Floats = std::vector<float>;

class TapeTest : public ::testing::Test {
 protected:
  // y = factor * x
  static Tensor scale(Context& ctx, const Tensor& x, float factor) {
    const auto times = [factor](Context& c, const Tensor& a) {
      Tensor b = c.empty(a.shape());
      for (int64_t i = 0; i < a.count(); ++i) b.f32()[i] = factor * a.f32()[i];
      return b;
    };
    Tensor y = times(ctx, x);
    if (ctx.tape()) {
      ctx.tape()->record({x}, y,
                         [times](Context& c, const Tensor& dy) { return Grads{times(c, dy)}; });
    }
    return y;
  }
  // y = a + b; both inputs get dy itself, not a copy.
  static Tensor add(Context& ctx, const Tensor& a, const Tensor& b) {
    Tensor y = ctx.empty(a.shape());
    for (int64_t i = 0; i < a.count(); ++i) y.f32()[i] = a.f32()[i] + b.f32()[i];
    if (ctx.tape()) {
      ctx.tape()->record({a, b}, y, [](Context&, const Tensor& dy) { return Grads{dy, dy}; });
    }
    return y;
  }

  Context ctx_{{.threads = 1, .poison = true}};
  Tape tape_;
  Context taped_ = ctx_.with_tape(&tape_);
};

TEST_F(TapeTest, RecordsNothingThatIsNotTracked) {
  const Tensor x = vector_of({1, 2});
  const Tensor y = scale(taped_, x, 3);
  EXPECT_EQ(tape_.size(), 0u);
  EXPECT_FALSE(Tape::tracks(y));
  tape_.backward(ctx_, {y}, {vector_of({1, 1})});
  EXPECT_FALSE(tape_.grad(x).defined());
}

TEST_F(TapeTest, ChainsAndConsumesItsRecords) {
  Tensor x = vector_of({1, 2});
  tape_.watch(x);
  const uint64_t id = x.grad_id();
  tape_.watch(x);
  EXPECT_EQ(x.grad_id(), id);
  const Tensor y = scale(taped_, scale(taped_, x, 3), 5);
  EXPECT_EQ(tape_.size(), 2u);
  tape_.backward(ctx_, {y}, {vector_of({1, 10})});
  EXPECT_EQ(values(tape_.grad(x)), (Floats{15, 150}));
  EXPECT_EQ(tape_.size(), 0u);
}

TEST_F(TapeTest, FanOutAddsUp) {
  Tensor x = vector_of({1, 2});
  tape_.watch(x);
  // z = 2x + 3x + x, with x used three times.
  const Tensor z = add(taped_, add(taped_, scale(taped_, x, 2), scale(taped_, x, 3)), x);
  tape_.backward(ctx_, {z}, {vector_of({1, -1})});
  EXPECT_EQ(values(tape_.grad(x)), (Floats{6, -6}));
}

TEST_F(TapeTest, AGradientHandedToTwoInputsIsNotChangedUnderTheOther) {
  Tensor a = vector_of({1, 2}), b = vector_of({3, 4});
  tape_.watch(a);
  tape_.watch(b);
  const Tensor dy = vector_of({1, 1});
  // a + b passes dy on to both; a gathers more, in either order of arrival.
  const Tensor y = add(taped_, a, b);
  const Tensor z = add(taped_, scale(taped_, a, 7), y);
  tape_.backward(ctx_, {z}, {dy});
  EXPECT_EQ(values(tape_.grad(a)), (Floats{8, 8}));
  EXPECT_EQ(values(tape_.grad(b)), (Floats{1, 1}));
  EXPECT_EQ(values(dy), (Floats{1, 1}));
}

TEST_F(TapeTest, AddingATensorToItself) {
  Tensor x = vector_of({1, 2});
  tape_.watch(x);
  const Tensor dy = vector_of({5, 6});
  tape_.backward(ctx_, {add(taped_, x, x)}, {dy});
  EXPECT_EQ(values(tape_.grad(x)), (Floats{10, 12}));
  EXPECT_EQ(values(dy), (Floats{5, 6}));
}

TEST_F(TapeTest, SeveralOutputsOfWhichSomeAreUnused) {
  Tensor x = vector_of({1, 2});
  tape_.watch(x);
  Tensor left = vector_of({0, 0}), right = vector_of({0, 0}), unused = vector_of({0, 0});
  tape_.record({x}, {&left, &right, &unused}, [](Context&, const std::vector<Tensor>& dy) {
    EXPECT_TRUE(dy[0].defined());
    EXPECT_FALSE(dy[1].defined());
    EXPECT_FALSE(dy[2].defined());
    return Grads{dy[0]};
  });
  int calls = 0;
  Tensor dead = vector_of({0, 0});
  tape_.record({x}, dead, [&calls](Context&, const Tensor& dy) {
    ++calls;
    return Grads{dy};
  });
  tape_.backward(ctx_, {left}, {vector_of({4, 5})});
  EXPECT_EQ(values(tape_.grad(x)), (Floats{4, 5}));
  EXPECT_EQ(calls, 0);  // nothing reached it
}

TEST_F(TapeTest, StridedGradientsAddUpToo) {
  const Tensor wide = host_tensor(std::vector<float>{1, 2, 9, 3, 4, 9}, {2, 3});
  Tensor z = host_tensor(std::vector<float>{1, 2, 3, 4}, {2, 2});
  tape_.watch(z);
  std::vector<Tensor> outputs;
  for (int i = 0; i < 3; ++i) {
    outputs.push_back(ctx_.zeros({2, 2}));
    tape_.record({z}, outputs.back(),
                 [wide](Context&, const Tensor&) { return Grads{wide.slice_columns(0, 2)}; });
  }
  tape_.backward(ctx_, outputs, std::vector<Tensor>(3, ctx_.zeros({2, 2})));
  EXPECT_EQ(values(tape_.grad(z)), (Floats{3, 6, 9, 12}));
  EXPECT_EQ((Floats(wide.f32(), wide.f32() + 6)), (Floats{1, 2, 9, 3, 4, 9}));
}

TEST_F(TapeTest, SinksGatherParametersOverSeveralTapes) {
  Tensor w = vector_of({1, 2}), frozen = vector_of({1, 1});
  w.set_grad_id(1);
  frozen.set_grad_id(2);
  Tape::Sinks sinks{{1, ctx_.zeros({2})}};
  for (int step = 0; step < 3; ++step) {
    Tape tape(&sinks);
    Context taped = ctx_.with_tape(&tape);
    const Tensor y = add(taped, scale(taped, w, 2), add(taped, w, frozen));
    tape.backward(ctx_, {y}, {vector_of({1, 10})});
    EXPECT_FALSE(tape.grad(w).defined());
  }
  EXPECT_EQ(values(sinks.at(1)), (Floats{9, 90}));
}

TEST_F(TapeTest, WhatTheRecordsSavedIsReleasedAsTheyArePlayed) {
  Tensor x = vector_of({1, 2});
  tape_.watch(x);
  const auto saved = std::make_shared<int>(1);
  Tensor y = vector_of({0, 0});
  tape_.record({x}, y, [saved](Context&, const Tensor& dy) { return Grads{dy}; });
  EXPECT_EQ(saved.use_count(), 2);
  tape_.backward(ctx_, {y}, {vector_of({1, 1})});
  EXPECT_EQ(saved.use_count(), 1);
}

TEST_F(TapeTest, RecomputeGivesTheSameGradients) {
  Tensor w = vector_of({2, 3});
  w.set_grad_id(1);
  const auto run = [&](bool again, Floats* dx, Floats* dw) {
    Tape::Sinks sinks{{1, ctx_.zeros({2})}};
    Tape tape(&sinks);
    Context taped = ctx_.with_tape(&tape);
    Tensor x = vector_of({1, 2});
    tape.watch(x);
    int runs = 0;
    const auto body = [&](Context& ctx, const std::vector<Tensor>& inputs) {
      ++runs;
      const Tensor t = add(ctx, scale(ctx, inputs[0], 3), w);
      return std::vector<Tensor>{t, add(ctx, t, inputs[0])};
    };
    std::vector<Tensor> out;
    out = again ? recompute(taped, {x}, body) : body(taped, {x});
    const Tensor z = add(taped, add(taped, out[0], out[1]), x);
    tape.backward(ctx_, {z}, {vector_of({1, 10})});
    EXPECT_EQ(runs, again ? 2 : 1);
    *dx = values(tape.grad(x));
    *dw = values(sinks.at(1));
  };
  Floats dx, dw, dx_again, dw_again;
  run(false, &dx, &dw);
  run(true, &dx_again, &dw_again);
  EXPECT_EQ(dx, (Floats{8, 80}));
  EXPECT_EQ(dw, (Floats{2, 20}));
  EXPECT_EQ(dx_again, dx);
  EXPECT_EQ(dw_again, dw);
}

TEST_F(TapeTest, RecomputeNestsAndServesParametersAlone) {
  Tensor w = vector_of({2, 3});
  w.set_grad_id(1);
  Tape::Sinks sinks{{1, ctx_.zeros({2})}};
  Tape tape(&sinks);
  Context taped = ctx_.with_tape(&tape);
  const Tensor x = vector_of({1, 1});  // not tracked: only w is
  const auto inner = [&](Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{add(ctx, in[0], w)};
  };
  const auto y = recompute(taped, {x}, [&](Context& ctx, const std::vector<Tensor>& in) {
    return recompute(ctx, {scale(ctx, in[0], 2)}, inner);
  });
  const Tensor z = scale(taped, y[0], 5);
  tape.backward(ctx_, {z}, {vector_of({1, 10})});
  EXPECT_EQ(values(sinks.at(1)), (Floats{5, 50}));
}

TEST_F(TapeTest, RecomputeWithoutATapeOnlyRuns) {
  const auto y =
      recompute(ctx_, {vector_of({1, 2})}, [](Context& ctx, const std::vector<Tensor>& in) {
        return std::vector<Tensor>{scale(ctx, in[0], 2)};
      });
  EXPECT_EQ(values(y[0]), (Floats{2, 4}));
}

}  // namespace
}  // namespace braid
