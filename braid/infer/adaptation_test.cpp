// Goal: learning while reading is what the header says, and a property of the sequence: no cut, no
// neighbour, no saved file in between changes a bit. Method: a naive float64 reference over random
// rows; sessions of small hybrids with random weights against one that reads in one go.

#include "braid/model/adaptation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "braid/infer/session.h"
#include "tests/support/bits.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"
#include "tests/support/small_model.h"

namespace braid {
namespace {

using test::expect_refused;
using test::random_tokens;
using test::SmallModel;

constexpr int64_t kVocab = SmallModel::kVocab, kWidth = 64;

using Matrix = std::vector<std::vector<double>>;

Matrix rows_of(const Weight& w) {
  Matrix out(static_cast<size_t>(w.rows()));
  std::vector<float> row(static_cast<size_t>(w.cols()));
  for (int64_t i = 0; i < w.rows(); ++i) {
    w.row(i, row.data());
    out[static_cast<size_t>(i)].assign(row.begin(), row.end());
  }
  return out;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// The loss of `next` where the corrected row is h + U^T z.
double loss_of(const Matrix& W, double s, const Matrix& U, const std::vector<double>& z,
               std::vector<double> h, int32_t next, std::vector<double>* logits = nullptr) {
  for (size_t r = 0; r < U.size(); ++r) {
    for (size_t j = 0; j < h.size(); ++j) h[j] += z[r] * U[r][j];
  }
  std::vector<double> scores;
  for (const auto& row : W) scores.push_back(s * dot(row, h));
  double sum = 0;
  for (const double x : scores) sum += std::exp(x);
  if (logits != nullptr) *logits = scores;
  return std::log(sum) - scores[static_cast<size_t>(next)];
}

// The header's loop with the gradient by central differences.
std::vector<double> reference(const Stack& stack, const Adaptation& adaptation,
                              const AdaptationOptions& options, const Tensor& h,
                              const std::vector<int32_t>& tokens) {
  const Matrix W = rows_of(stack.head()), P = rows_of(adaptation.directions());
  const double s = stack.config().logit_scale;
  double w = 0;
  for (const auto& row : W) w += s * s * dot(row, row) / static_cast<double>(W.size());
  Matrix U(P.size(), std::vector<double>(kWidth)), sum = U;
  std::vector<double> out;
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (t > 0 && static_cast<int64_t>(t) % options.batch == 0) {
      for (size_t r = 0; r < U.size(); ++r) {
        for (size_t j = 0; j < kWidth; ++j) {
          U[r][j] = std::exp(-static_cast<double>(options.batch) / options.horizon) * U[r][j] -
                    options.rate / w * sum[r][j];
          sum[r][j] = 0;
        }
      }
    }
    const std::vector<double> row(h.f32() + t * kWidth, h.f32() + (t + 1) * kWidth);
    std::vector<double> z, logits;
    for (const auto& p : P) z.push_back(dot(p, row));
    const double length = std::sqrt(dot(z, z));
    for (double& x : z) x /= length;
    const int32_t next = t + 1 < tokens.size() ? tokens[t + 1] : 0;
    loss_of(W, s, U, z, row, next, &logits);
    out.insert(out.end(), logits.begin(), logits.end());
    constexpr double kStep = 1e-5;
    for (size_t r = 0; r < U.size(); ++r) {
      for (size_t j = 0; j < kWidth; ++j) {
        const double was = U[r][j];
        U[r][j] = was + kStep;
        const double above = loss_of(W, s, U, z, row, next);
        U[r][j] = was - kStep;
        const double below = loss_of(W, s, U, z, row, next);
        U[r][j] = was;
        sum[r][j] += (above - below) / (2 * kStep);
      }
    }
  }
  return out;
}

TEST(Adaptation, IsGradientDescentOnTheNextToken) {
  for (const bool tied : {true, false}) {
    ModelConfig config = SmallModel::config("swiglu");
    config.vocab = 24;
    config.tied = tied;
    config.logit_scale = tied ? 1 : 0.7;
    Context ctx({.threads = 2, .poison = true});
    Stack stack(config);
    stack.initialize(ctx, Rng(2));
    const AdaptationOptions options{.rank = 5, .batch = 3, .rate = 0.8, .horizon = 20};
    const Adaptation adaptation(ctx, stack, options);
    const auto tokens = random_tokens(11, 3, config.vocab);
    const Tensor h = test::randn({11, kWidth}, 4);
    const Tensor got =
        adaptation.forward(ctx, h, tokens, SequenceBatch::single(11), std::nullopt, nullptr);
    // The differences are good to about the square of their step.
    test::expect_close(got, reference(stack, adaptation, options, h, tokens),
                       test::tolerance(DType::kF32, kWidth), "logits");
  }
}

class AdaptedSession : public ::testing::Test {
 protected:
  AdaptedSession() {
    for (const auto& [name, p] : model_.stack.parameters()) {
      if (name == "embedding.weight") p->init = init_normal(0.3f);  // a head that has preferences
    }
    model_.stack.initialize(ctx_, Rng(1));
  }
  Session session(const Adaptation* adaptation) const {
    return model_.session({.piece = 64, .rollback_tokens = 8, .adaptation = adaptation});
  }
  void expect_same(const Session& got, const Session& want, const std::string& what) {
    ASSERT_EQ(got.position(), want.position()) << what;
    for (size_t i = 0; i < want.logits().size(); ++i) {
      const float a = got.logits()[i], b = want.logits()[i];
      ASSERT_TRUE(test::bits_are_promised() ? a == b : std::abs(a - b) <= 1e-3f)
          << what << ": logit " << i << " is " << a << ", want " << b;
    }
  }

  SmallModel model_;
  Context& ctx_ = model_.ctx;
  Adaptation adaptation_{ctx_, model_.stack, {.batch = 7}};
  std::vector<int32_t> text_ = random_tokens(200, 5);
};

TEST_F(AdaptedSession, AtRateZeroIsTheModel) {
  const Adaptation idle(ctx_, model_.stack, {.rate = 0});
  Session got = session(&idle), want = session(nullptr), learned = session(&adaptation_);
  got.append(ctx_, text_);
  want.append(ctx_, text_);
  learned.append(ctx_, text_);
  expect_same(got, want, "rate 0");
  EXPECT_FALSE(std::ranges::equal(learned.logits(), want.logits()));
}

TEST_F(AdaptedSession, IsTheSameForEveryCutForkAndRollback) {
  Session want = session(&adaptation_);
  want.append(ctx_, text_);
  const std::span<const int32_t> text = text_;
  for (const size_t cut : {1, 6, 7, 8, 63, 64, 65, 199}) {
    Session got = session(&adaptation_);
    got.append(ctx_, text.first(cut));
    Session fork = got.fork();
    fork.append(ctx_, random_tokens(20, 9));
    got.append(ctx_, text.subspan(cut));
    expect_same(got, want, "cut at " + std::to_string(cut));
    got.append(ctx_, random_tokens(8, 11));
    got.rollback(ctx_, 8);
    expect_same(got, want, "and rolled back");
  }
  Session one = session(&adaptation_);
  for (const int32_t token : text_) one.append(ctx_, std::span(&token, 1));
  expect_same(one, want, "token by token");
}

TEST_F(AdaptedSession, DoesNotDependOnItsNeighbours) {
  State a = model_.stack.make_state(ctx_, &adaptation_), b = a, alone = a;
  const auto other = random_tokens(150, 6);
  const std::span<const int32_t> text = text_, of_other = other;
  size_t at = 0;
  for (const size_t n : {40, 1, 59}) {
    std::vector<int32_t> tokens(of_other.begin() + at / 2, of_other.begin() + at / 2 + 13);
    SequenceBatch batch;
    batch.add(13, b.position());
    batch.add(static_cast<int64_t>(n), a.position());
    tokens.insert(tokens.end(), text.begin() + at, text.begin() + at + n);
    State* const both[] = {&b, &a};
    State* const only[] = {&alone};
    const Tensor together =
        model_.stack.forward(ctx_, tokens, batch, {.states = both, .adaptation = &adaptation_});
    const Tensor apart = model_.stack.forward(
        ctx_, text.subspan(at, n), SequenceBatch::single(static_cast<int64_t>(n), alone.position()),
        {.states = only, .adaptation = &adaptation_});
    const Tensor mine = together.slice_rows(13, 13 + static_cast<int64_t>(n));
    if (test::bits_are_promised()) {
      EXPECT_TRUE(test::same_bits(mine, apart));
    }
    at += n;
  }
}

TEST_F(AdaptedSession, LearnsWhatRepeats) {
  std::vector<int32_t> text;
  for (int i = 0; i < 12; ++i) text.insert(text.end(), text_.begin(), text_.begin() + 40);
  const auto loss = [&](const Adaptation* adaptation) {
    const auto n = std::ssize(text);
    const Tensor logits =
        model_.stack.forward(ctx_, text, SequenceBatch::single(n), {.adaptation = adaptation});
    double sum = 0;
    for (int64_t i = n - 81; i + 1 < n; ++i) {
      const float* row = logits.f32() + i * kVocab;
      double total = 0;
      for (int64_t v = 0; v < kVocab; ++v) total += std::exp(static_cast<double>(row[v]));
      sum += std::log(total) - static_cast<double>(row[text[static_cast<size_t>(i) + 1]]);
    }
    return sum / 80;
  };
  const double without = loss(nullptr), with = loss(&adaptation_);
  EXPECT_LT(with, 0.7 * without) << "loss " << with << ", without " << without;
}

TEST_F(AdaptedSession, SavesAndRefusesAnotherAdaptation) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "session";
  Session session = this->session(&adaptation_), want = session;
  session.append(ctx_, std::span(text_).first(101));
  session.save(ctx_, path);
  Session again = this->session(&adaptation_);
  again.load(path);
  again.append(ctx_, std::span(text_).subspan(101));
  want.append(ctx_, text_);
  expect_same(again, want, "saved at 101");

  const Adaptation other(ctx_, model_.stack, {.batch = 7, .horizon = 100});
  Session of_other = this->session(&other), without = this->session(nullptr);
  expect_refused([&] { of_other.load(path); },
                 "adaptation rank=64,batch=7,rate=1,horizon=4096, want "
                 "rank=64,batch=7,rate=1,horizon=100");
  expect_refused([&] { without.load(path); }, "horizon=4096, want none");
  without.append(ctx_, text_);
  without.save(ctx_, path);
  expect_refused([&] { again.load(path); }, "adaptation none, want rank=64");
}

TEST_F(AdaptedSession, RefusesImpossibleOptions) {
  const auto refused = [&](const AdaptationOptions& options, const char* part) {
    expect_refused([&] { Adaptation(ctx_, model_.stack, options); }, part);
  };
  refused({.rank = 65}, "rank 65, want 1..64");
  refused({.rank = -1}, "rank -1, want 1..64");
  refused({.batch = 0}, "batch of 0 tokens, want 1..4096");
  refused({.rate = -1}, "rate -1, want at least 0");
  refused({.rate = std::numeric_limits<double>::quiet_NaN()}, "rate nan");
  refused({.horizon = 0}, "horizon of 0 tokens");
}

}  // namespace
}  // namespace braid
