// Goal: the convolution equals its reference, with gradients and state; a token's bits do not
// depend on cuts or threads. Method: naive float64 loop, complex step on it.

#include <gtest/gtest.h>

#include <string>

#include "braid/core/tape.h"
#include "braid/ops/short_conv/cases.h"
#include "braid/ops/short_conv/reference.h"
#include "braid/ops/short_conv/short_conv.h"
#include "tests/support/device.h"

namespace braid {
namespace {

using test::Complex;

struct Problem {
  Tensor x, w, bias, initial;
  SequenceBatch batch;
};

Problem make_problem(const ShortConvCase& c, uint64_t seed) {
  Problem p;
  for (const int64_t length : c.lengths) p.batch.add(length);
  const int64_t tokens = p.batch.tokens();
  p.x = test::randn({tokens, c.channels}, seed);
  p.w = test::randn({c.channels, c.width}, seed + 1);
  p.bias = test::randn({c.channels}, seed + 2);
  p.initial = test::randn({p.batch.sequences(), c.width - 1, c.channels}, seed + 3);
  return p;
}

template <class T>
std::vector<T> get(const Tensor& x) {
  return x.defined() ? test::as<T>(test::values(x)) : std::vector<T>{};
}

Tensor rows_of_sequence(const Tensor& x, const SequenceBatch& batch, int64_t s) {
  const auto i = static_cast<size_t>(s);
  return x.slice_rows(batch.offsets[i], batch.offsets[i + 1]);
}

class ShortConv : public test::DeviceTest {
 protected:
  Context with_threads(int threads) {
    return Context({.device = ctx().device(), .threads = threads, .poison = true});
  }
  // The rows of x lie apart.
  Problem on_device(const Problem& p) {
    return {to_device(p.x, 3), to_device(p.w), to_device(p.bias), to_device(p.initial), p.batch};
  }
  std::vector<Tensor> gradients_of(Context& base, const Problem& host, bool silu, const Tensor& dy,
                                   const Tensor& d_final);
};

TEST_P(ShortConv, MatchesTheReference) {
  uint64_t seed = 1;
  for (const ShortConvCase& c : short_conv_test_cases()) {
    for (const bool bare : {false, true}) {
      Problem p = make_problem(c, seed += 10);
      if (bare) p.bias = p.initial = Tensor();
      const Problem q = on_device(p);
      std::vector<double> want, states;
      for (int64_t s = 0; s < p.batch.sequences(); ++s) {
        auto state = bare ? std::vector<double>{} : get<double>(p.initial.slice_rows(s, s + 1));
        const auto y = reference::short_conv(p.batch.length(s), c.channels, c.width, !bare,
                                             get<double>(rows_of_sequence(p.x, p.batch, s)),
                                             get<double>(p.w), get<double>(p.bias), state);
        want.insert(want.end(), y.begin(), y.end());
        states.insert(states.end(), state.begin(), state.end());
      }
      everywhere([&] {
        const ShortConvResult got =
            short_conv(ctx(), q.x, q.w, q.bias, q.initial, q.batch, {.silu = !bare});
        expect_near(got.y, want, test::tolerance(DType::kF32, c.width), "y");
        EXPECT_EQ(read(got.final_state), states);
      });
    }
  }
}

TEST_P(ShortConv, BitsDependOnNeitherCutsNorThreads) {
  Context one = with_threads(1), three = with_threads(3);
  for (const ShortConvCase& c : short_conv_test_cases()) {
    const Problem p = on_device(make_problem(c, 7));
    const ShortConvResult want =
        short_conv(one, p.x, p.w, p.bias, p.initial, p.batch, {.silu = true});
    EXPECT_TRUE(
        same(short_conv(three, p.x, p.w, p.bias, p.initial, p.batch, {.silu = true}).y, want.y));
    for (int64_t s = 0; s < p.batch.sequences(); ++s) {
      const Tensor x = rows_of_sequence(p.x, p.batch, s);
      const Tensor y = rows_of_sequence(want.y, p.batch, s);
      for (const int64_t piece : {1, 2, 5}) {
        const Tensor state = to_device(to_host(p.initial.slice_rows(s, s + 1)));
        float* const states[] = {state.f32()};
        for (int64_t t = 0; t < x.rows(); t += piece) {
          const int64_t end = std::min(x.rows(), t + piece);
          const Tensor part =
              short_conv_in_place(three, x.slice_rows(t, end), p.w, p.bias, states,
                                  SequenceBatch::single(end - t, t), {.silu = true});
          ASSERT_TRUE(same(part, y.slice_rows(t, end)));
        }
        EXPECT_TRUE(same(state, want.final_state.slice_rows(s, s + 1)));
      }
    }
  }
}

std::vector<Tensor> ShortConv::gradients_of(Context& base, const Problem& host, bool silu,
                                            const Tensor& dy, const Tensor& d_final) {
  Problem p = on_device(host);
  Tape tape;
  Context recorded = base.with_tape(&tape);
  Tensor* const leaves[] = {&p.x, &p.w, &p.bias, &p.initial};
  for (Tensor* leaf : leaves) tape.watch(*leaf);
  const auto out = short_conv(recorded, p.x, p.w, p.bias, p.initial, p.batch, {.silu = silu});
  tape.backward(base, {out.y, out.final_state}, {to_device(dy, 1), to_device(d_final)});
  std::vector<Tensor> grads;
  for (const Tensor* leaf : leaves) grads.push_back(to_host(tape.grad(*leaf)));
  return grads;
}

TEST_P(ShortConv, GradientsMatchComplexStep) {
  const ShortConvCase cases[] = {{{1}, 3, 4}, {{9}, 5, 4}, {{3, 0, 6}, 2, 3}, {{70, 1, 60}, 2, 6}};
  for (const ShortConvCase& c : cases) {
    for (const bool silu : {false, true}) {
      const Problem p = make_problem(c, 11);
      const Tensor dy = test::randn(p.x.shape(), 12), d_final = test::randn(p.initial.shape(), 13);
      const auto got = gradients_of(ctx(), p, silu, dy, d_final);
      for (size_t which = 0; which < 4; ++which) {
        std::vector<Complex> fields[] = {get<Complex>(p.x), get<Complex>(p.w), get<Complex>(p.bias),
                                         get<Complex>(p.initial)};
        const std::vector<double> at = test::values(which == 0   ? p.x
                                                    : which == 1 ? p.w
                                                    : which == 2 ? p.bias
                                                                 : p.initial);
        const auto loss = [&](const std::vector<Complex>& z) {
          fields[which] = z;
          Complex sum = 0;
          for (int64_t s = 0; s < p.batch.sequences(); ++s) {
            const int64_t first = p.batch.offsets[static_cast<size_t>(s)] * c.channels;
            const int64_t end = p.batch.offsets[static_cast<size_t>(s) + 1] * c.channels;
            const int64_t size = p.initial.row_count();
            const std::vector<Complex> x(fields[0].begin() + first, fields[0].begin() + end);
            std::vector<Complex> state(fields[3].begin() + s * size,
                                       fields[3].begin() + (s + 1) * size);
            const auto y = reference::short_conv(p.batch.length(s), c.channels, c.width, silu, x,
                                                 fields[1], fields[2], state);
            sum += test::dot(y, test::values(rows_of_sequence(dy, p.batch, s)));
            sum += test::dot(state, test::values(d_final.slice_rows(s, s + 1)));
          }
          return sum;
        };
        const std::string what = "gradient " + std::to_string(which);
        test::expect_close(got[which], test::complex_step(at, loss),
                           test::tolerance(DType::kF32, p.batch.tokens() + c.width), what.c_str());
      }
    }
  }
}

TEST_P(ShortConv, GradientsDoNotDependOnThreads) {
  const Problem p = make_problem({{40, 3, 80}, 300, 4}, 17);
  const Tensor dy = test::randn(p.x.shape(), 18), d_final = test::randn(p.initial.shape(), 19);
  Context one = with_threads(1), three = with_threads(3);
  const auto want = gradients_of(one, p, true, dy, d_final);
  const auto got = gradients_of(three, p, true, dy, d_final);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(test::same_bits(got[i], want[i])) << i;
}

TEST_P(ShortConv, RefusesWrongShapes) {
  const Problem p = on_device(make_problem({{4}, 6, 4}, 1));
  EXPECT_THROW(short_conv(ctx(), p.x, p.bias, {}, {}, p.batch), Error);
  EXPECT_THROW(short_conv(ctx(), p.x, p.w, {}, {}, SequenceBatch::single(5)), Error);
  EXPECT_THROW(short_conv_in_place(ctx(), p.x, p.w, {}, {}, p.batch), Error);
}

INSTANTIATE_TEST_SUITE_P(Devices, ShortConv, test::kDevices, test::device_name);

}  // namespace
}  // namespace braid
