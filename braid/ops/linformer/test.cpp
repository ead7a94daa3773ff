// Goal: both forms of linformer attention equal their reference, with the gradients of all inputs;
// the causal form has the same bits for every cut and number of threads, and no token, not even a
// NaN, reaches an earlier one. Method: naive float64 loops, complex step on them.

#include <gtest/gtest.h>

#include <vector>

#include "braid/core/tape.h"
#include "braid/ops/linformer/cases.h"
#include "braid/ops/linformer/linformer.h"
#include "braid/ops/linformer/reference.h"
#include "tests/support/numeric.h"
#include "tests/support/targets.h"

namespace braid {
namespace {

using namespace test;

constexpr size_t kInputs = 5;  // q, k, v, e, f

struct Problem {
  Tensor inputs[kInputs];
  SequenceBatch batch;
  LinformerOptions options;
  reference::Linformer sizes;
};

Problem make_problem(const LinformerCase& c, uint64_t seed) {
  Problem p;
  int64_t longest = 1;
  for (const int64_t n : c.lengths) {
    p.batch.add(n);
    longest = std::max(longest, n);
  }
  const int64_t N = p.batch.tokens(), rows = c.block == 0 ? longest : c.block;
  const int64_t KC = c.kv_heads * c.head_dim, VC = c.kv_heads * c.value_dim;
  p.inputs[0] =
      randn({N, c.heads * c.head_dim + 3}, seed).slice_columns(1, 1 + c.heads * c.head_dim);
  p.inputs[1] = randn({N, KC + 2}, seed + 1).slice_columns(0, KC);
  p.inputs[2] = randn({N, VC + 1}, seed + 2).slice_columns(1, 1 + VC);
  p.inputs[3] = randn({rows, c.rank}, seed + 3, 0.4f);
  p.inputs[4] = randn({rows, c.rank}, seed + 4, 0.4f);
  p.options = {.heads = c.heads, .kv_heads = c.kv_heads, .rank = c.rank, .block = c.block};
  p.sizes = {c.heads, c.kv_heads, c.head_dim, c.value_dim, c.rank, c.block};
  return p;
}

Tensor run(Context& ctx, const Problem& p, const Tensor* x) {
  const int64_t block = p.options.block;
  const Tensor sk = linformer_summaries(ctx, x[1], x[3], p.batch, block);
  const Tensor sv = linformer_summaries(ctx, x[2], x[4], p.batch, block);
  const Tensor none;
  return linformer_attention(ctx, x[0], block == 0 ? none : x[1], block == 0 ? none : x[2], sk, sv,
                             p.batch, p.options);
}

template <class T>
std::vector<T> reference_of(const Problem& p, const std::vector<T>* x) {
  std::vector<T> y;
  const reference::Linformer& o = p.sizes;
  const int64_t KC = o.kv_heads * o.head_dim, VC = o.kv_heads * o.value_dim;
  for (int64_t s = 0; s < p.batch.sequences(); ++s) {
    const int64_t a = p.batch.offsets[static_cast<size_t>(s)], T_ = p.batch.length(s);
    const auto part = [&](size_t which, int64_t width) {
      return std::vector<T>(x[which].begin() + a * width, x[which].begin() + (a + T_) * width);
    };
    const auto q = part(0, o.heads * o.head_dim), k = part(1, KC), v = part(2, VC);
    const auto made = reference::linformer_attention(
        T_, o, q, k, v, reference::linformer_summaries(T_, KC, o.rank, o.block, k, x[3]),
        reference::linformer_summaries(T_, VC, o.rank, o.block, v, x[4]));
    y.insert(y.end(), made.begin(), made.end());
  }
  return y;
}

struct Carried {
  Carried(const LinformerOptions& options, int64_t tokens, int64_t kv_width)
      : blocks(static_cast<size_t>(2 * options.block * kv_width), NAN) {
    const int64_t page = kPageTokens * linformer_page_floats(options, kv_width);
    for (int64_t t = 0; t < tokens; t += kPageTokens) {
      storage.emplace_back(static_cast<size_t>(page), NAN);
    }
    for (auto& each : storage) pages.push_back(each.data());
  }
  LinformerState view() {
    return {.blocks = blocks.data(),
            .summaries = {.pages = pages.data(), .count = static_cast<int64_t>(pages.size())}};
  }
  std::vector<float> blocks;
  std::vector<std::vector<float>> storage;
  std::vector<void*> pages;
};

double tolerance_of(const LinformerCase& c) {
  return tolerance(DType::kF32, c.head_dim + c.lengths[0]);
}

TEST(Linformer, MatchesTheReference) {
  Context ctx({.threads = 2, .poison = true});
  on_every_target([&] {
    uint64_t seed = 1;
    for (const LinformerCase& c : linformer_test_cases()) {
      const Problem p = make_problem(c, seed += 10);
      std::vector<double> x[kInputs];
      for (size_t i = 0; i < kInputs; ++i) x[i] = values(p.inputs[i]);
      SCOPED_TRACE(fmt::format("{} tokens, block {}", c.lengths[0], c.block));
      expect_close(run(ctx, p, p.inputs), reference_of(p, x), tolerance_of(c), "y");
    }
  });
}

TEST(Linformer, BitsDependOnNeitherCutsNorThreads) {
  Context one({.threads = 1, .poison = true}), three({.threads = 3, .poison = true});
  for (const LinformerCase& c : linformer_test_cases()) {
    const Problem p = make_problem(c, 7);
    const Tensor want = run(one, p, p.inputs);
    EXPECT_TRUE(same_bits(run(three, p, p.inputs), want));
    if (c.block == 0) continue;
    const int64_t T = c.lengths[0];
    for (const int64_t piece : {int64_t{1}, int64_t{7}, c.block, c.block + 5, T}) {
      Carried state(p.options, T, p.inputs[1].dim(1) + p.inputs[2].dim(1));
      for (int64_t t = 0; t < T; t += piece) {
        const int64_t end = std::min(T, t + piece);
        const LinformerState states[] = {state.view()};
        const auto rows = [&](size_t i) { return p.inputs[i].slice_rows(t, end); };
        const Tensor part =
            linformer_attention(three, rows(0), rows(1), rows(2), p.inputs[3], p.inputs[4],
                                SequenceBatch::single(end - t, t), p.options, states);
        ASSERT_TRUE(same_bits(part, want.slice_rows(t, end))) << "piece " << piece << " at " << t;
      }
    }
  }
}

TEST(Linformer, NoTokenReachesAnEarlierOne) {
  Context ctx({.threads = 2, .poison = true});
  const Problem p = make_problem({{40}, 2, 1, 8, 8, 3, 16}, 3);
  const Tensor want = run(ctx, p, p.inputs);
  for (const int64_t t : {1, 15, 16, 31, 32, 39}) {
    Tensor moved[kInputs];
    for (size_t i = 0; i < kInputs; ++i) moved[i] = ctx.to_host(p.inputs[i]);
    for (size_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < moved[i].dim(1); ++j) moved[i].f32()[t * moved[i].dim(1) + j] = NAN;
    }
    const Tensor y = run(ctx, p, moved);
    EXPECT_TRUE(same_bits(y.slice_rows(0, t), want.slice_rows(0, t))) << t;
    EXPECT_TRUE(std::isnan(values(y.slice_rows(t, t + 1))[0])) << t;
  }
}

std::vector<Tensor> gradients(Context& ctx, const Problem& p, const Tensor& dy) {
  Tape tape;
  Tensor leaves[kInputs];
  for (size_t i = 0; i < kInputs; ++i) tape.watch(leaves[i] = p.inputs[i]);
  Context taped = ctx.with_tape(&tape);
  const Tensor y = run(taped, p, leaves);
  tape.backward(ctx, {y}, {dy});
  std::vector<Tensor> grads;
  for (const Tensor& leaf : leaves) grads.push_back(tape.grad(leaf));
  return grads;
}

TEST(Linformer, GradientsMatchComplexStep) {
  Context ctx({.threads = 2, .poison = true});
  for (const LinformerCase& c :
       std::vector<LinformerCase>{{{27, 0, 8}, 2, 1, 5, 3, 2, 8}, {{9, 5}, 2, 2, 3, 4, 3, 0}}) {
    const Problem p = make_problem(c, 11);
    const Tensor dy = randn({p.batch.tokens(), c.heads * c.value_dim + 1}, 12)
                          .slice_columns(0, c.heads * c.value_dim);
    const auto got = gradients(ctx, p, dy);
    const char* names[] = {"dq", "dk", "dv", "de", "df"};
    for (size_t which = 0; which < kInputs; ++which) {
      std::vector<Complex> x[kInputs];
      for (size_t i = 0; i < kInputs; ++i) x[i] = as<Complex>(values(p.inputs[i]));
      const auto want = complex_step(values(p.inputs[which]), [&](const std::vector<Complex>& z) {
        x[which] = z;
        return dot(reference_of(p, x), values(dy));
      });
      expect_close(got[which], want, tolerance_of(c), names[which]);
    }
  }
}

TEST(Linformer, GradientsDoNotDependOnThreads) {
  Context one({.threads = 1}), three({.threads = 3});
  const Problem p = make_problem({{100, 3, 80}, 4, 2, 8, 8, 5, 16}, 17);
  const Tensor dy = randn({p.batch.tokens(), 32}, 18);
  const auto want = gradients(one, p, dy), got = gradients(three, p, dy);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(same_bits(got[i], want[i])) << i;
}

TEST(Linformer, RefusesWhatDoesNotFit) {
  Context ctx;
  const Problem p = make_problem({{20}, 2, 1, 8, 8, 3, 16}, 1);
  const Tensor* x = p.inputs;
  EXPECT_THROW(linformer_summaries(ctx, x[1], x[3], p.batch, 0), Error) << "e is too short";
  EXPECT_THROW(linformer_summaries(ctx, x[1], x[3], p.batch, 8), Error);
  EXPECT_THROW(linformer_summaries(ctx, x[1], x[3], p.batch, 24), Error);
  const Tensor sk = linformer_summaries(ctx, x[1], x[3], p.batch, 16);
  EXPECT_THROW(linformer_attention(ctx, x[0], x[1], x[2], sk, x[1], p.batch, p.options), Error);
  EXPECT_THROW(linformer_attention(ctx, x[0], {}, {}, sk, sk, p.batch, p.options), Error);
  EXPECT_THROW(linformer_attention(ctx, x[0], x[1], x[2], x[3], x[4], p.batch, p.options, {}),
               Error);
  Carried state(p.options, 0, 16);
  const LinformerState states[] = {state.view()};
  EXPECT_THROW(linformer_attention(ctx, x[0], x[1], x[2], x[3], x[4], p.batch, p.options, states),
               Error);
}

}  // namespace
}  // namespace braid
