// Goal: a session is a function of the tokens it has read, however they came and whatever was
// forgotten in between. Method: small hybrid stacks with random weights; every history is compared
// with a fresh session that reads the same tokens in one go, bit for bit.

#include "braid/infer/session.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/bits.h"
#include "tests/support/files.h"
#include "tests/support/small_model.h"

namespace braid {
namespace {

using test::bits_are_promised;
using test::expect_refused;
using test::random_tokens;
using test::SmallModel;

void expect_same(const Session& got, const Session& want, const std::string& what) {
  EXPECT_EQ(got.position(), want.position()) << what;
  EXPECT_EQ(got.hash(), want.hash()) << what;
  ASSERT_EQ(got.logits().size(), want.logits().size()) << what;
  for (size_t i = 0; i < got.logits().size(); ++i) {
    const float a = got.logits()[i], b = want.logits()[i];
    ASSERT_TRUE(bits_are_promised() ? a == b : std::abs(a - b) <= 1e-3f)
        << what << ": logit " << i << " is " << a << ", want " << b;
  }
}

std::vector<int32_t> generate(Context& ctx, Session& session, int64_t n, uint64_t seed) {
  Sampler sampler({.temperature = 1.0, .seed = seed});
  std::vector<int32_t> made;
  session.generate(ctx, sampler, n, [&](int32_t token) {
    made.push_back(token);
    return true;
  });
  return made;
}

class SessionTest : public ::testing::Test {
 protected:
  SmallModel model_;
  Context& ctx_ = model_.ctx;
};

TEST_F(SessionTest, BeginsWithNothing) {
  Session session = model_.session();
  EXPECT_EQ(session.position(), 0);
  EXPECT_TRUE(session.logits().empty());
  Sampler sampler({});
  const auto go_on = [](int32_t) { return true; };
  EXPECT_EQ(session.generate(ctx_, sampler, 0, go_on), 0);
  expect_refused([&] { session.generate(ctx_, sampler, 1, go_on); }, "nothing has been read");
}

TEST_F(SessionTest, RefusesAStackThatDoesNotStream) {
  const SmallModel encoder("attn:heads=4 linformer:64,rank=4");
  expect_refused([&] { encoder.session(); },
                 "sublayer 1, linformer, sees whole sequences, want sublayers that carry a state");
}

TEST_F(SessionTest, RefusesImpossibleOptions) {
  expect_refused([&] { model_.session({.piece = 0}); }, "piece of 0 tokens, want at least 1");
  expect_refused([&] { model_.session({.rollback_tokens = 17}); }, "17, want 0..16");
  expect_refused([&] { model_.session({.rollback_tokens = -1}); }, "-1, want 0..16");
}

TEST_F(SessionTest, TokensOutsideTheVocabularyChangeNothing) {
  const auto tokens = random_tokens(20, 3);
  Session session = model_.session_of(tokens);
  const Session before = session.fork();
  for (const int32_t bad : {-1, 96, INT32_MAX, INT32_MIN}) {
    const std::vector<int32_t> more = {1, 2, bad};
    expect_refused([&] { session.append(ctx_, more); }, "want 0..95");
    expect_same(session, before, "after a refused append");
  }
}

TEST_F(SessionTest, PiecesOfAnyLengthGiveTheSameBits) {
  const auto tokens = random_tokens(700, 4);  // past the ring of 24 + 256 tokens
  const Session whole = model_.session_of(tokens);
  for (const int64_t piece : {1, 7, 64, 100, 699, 4096}) {
    Session session = model_.session({.piece = piece});
    session.append(ctx_, tokens);
    expect_same(session, whole, fmt::format("pieces of {}", piece));
  }
  Session uneven = model_.session({.piece = 96});
  std::span<const int32_t> rest = tokens;
  for (size_t n = 1; !rest.empty(); n = n * 3 % 101) {
    const size_t take = std::min(n, rest.size());
    uneven.append(ctx_, rest.first(take));
    rest = rest.subspan(take);
  }
  expect_same(uneven, whole, "appended unevenly");
}

TEST_F(SessionTest, HashIsOfTheTokens) {
  EXPECT_EQ(model_.session_of({1, 2, 3}).hash(), model_.session_of({1, 2, 3}).hash());
  EXPECT_NE(model_.session_of({1, 2, 3}).hash(), model_.session_of({1, 3, 2}).hash());
  EXPECT_NE(model_.session_of({0}).hash(), model_.session_of({0, 0}).hash());
  EXPECT_NE(model_.session_of({0}).hash(), model_.session().hash());
}

TEST_F(SessionTest, GeneratedTokensAreReadLikeAnyOthers) {
  auto tokens = random_tokens(50, 5);
  Session session = model_.session_of(tokens);
  const auto made = generate(ctx_, session, 30, 9);
  ASSERT_EQ(made.size(), 30u);
  tokens.insert(tokens.end(), made.begin(), made.end());
  expect_same(session, model_.session_of(tokens), "after generating");
}

TEST_F(SessionTest, GenerateStopsAfterTheTokenThatSaysSo) {
  Session session = model_.session_of(random_tokens(10, 6));
  Sampler sampler({});
  int64_t seen = 0;
  EXPECT_EQ(session.generate(ctx_, sampler, 100, [&](int32_t) { return ++seen < 4; }), 4);
  EXPECT_EQ(session.position(), 14);
}

TEST_F(SessionTest, ForksDivergeIndependently) {
  const auto tokens = random_tokens(130, 7);
  Session session = model_.session_of(tokens);
  std::vector<Session> forks(50, session.fork());
  EXPECT_EQ(forks[0].state_bytes(), session.state_bytes());

  const auto left = random_tokens(90, 8), right = random_tokens(90, 9);
  forks[0].append(ctx_, left);
  forks[1].append(ctx_, right);
  auto both = tokens;
  both.insert(both.end(), left.begin(), left.end());
  expect_same(forks[0], model_.session_of(both), "the fork that read the left text");
  both.resize(tokens.size());
  both.insert(both.end(), right.begin(), right.end());
  expect_same(forks[1], model_.session_of(both), "the fork that read the right text");
  expect_same(session, model_.session_of(tokens), "the original");
  session.append(ctx_, right);
  expect_same(session, forks[1], "the original after the same text");
  expect_same(forks[2], model_.session_of(tokens), "a fork that stood still");
}

TEST_F(SessionTest, RollbackAfterAPromptEqualsNeverHavingReadIt) {
  const auto more = random_tokens(20, 11);
  for (const int64_t length : {16, 17, 40, 47, 64, 95, 300}) {
    const auto tokens = random_tokens(length, 10);
    for (const int64_t back : {0, 1, 2, 7, 15, 16}) {
      const std::string what = fmt::format("{} tokens, back {}", length, back);
      Session session = model_.session({.rollback_tokens = 16});
      session.append(ctx_, tokens);
      session.rollback(ctx_, back);
      const std::vector<int32_t> kept(tokens.begin(), tokens.end() - back);
      Session straight = model_.session();
      straight.append(ctx_, kept);
      expect_same(session, straight, what);
      session.append(ctx_, more);
      straight.append(ctx_, more);
      expect_same(session, straight, what + ", then more");
    }
  }
}

TEST_F(SessionTest, RollbackAfterEveryPairOfAppends) {
  // Where the second text begins relative to the marks is what could go wrong.
  for (int64_t first = 1; first <= 49; first += 4) {
    for (const int64_t second : {1, 10, 16, 33}) {
      auto tokens = random_tokens(first + second, 12);
      Session session = model_.session({.rollback_tokens = 16});
      session.append(ctx_, std::span(tokens).first(static_cast<size_t>(first)));
      session.append(ctx_, std::span(tokens).subspan(static_cast<size_t>(first)));
      const int64_t back = std::min<int64_t>(16, first + second);
      session.rollback(ctx_, back);
      tokens.resize(tokens.size() - static_cast<size_t>(back));
      expect_same(session, model_.session_of(tokens), fmt::format("{} + {}", first, second));
    }
  }
}

// Appends, generated tokens, rollbacks and forks in random order, against the list of tokens.
TEST_F(SessionTest, AnyHistoryWithRollbacks) {
  for (const int64_t reach : {1, 5, 16}) {
    for (uint64_t seed = 0; seed < 2; ++seed) {
      const Rng rng(seed, static_cast<uint64_t>(reach));
      Session session = model_.session({.piece = 48, .rollback_tokens = reach});
      std::vector<int32_t> tokens;
      size_t floor = 0;  // the position that rollbacks are promised to reach
      const auto read_more = [&](const std::vector<int32_t>& more) {
        tokens.insert(tokens.end(), more.begin(), more.end());
        floor = std::max(floor, tokens.size() - std::min(tokens.size(), size_t(reach)));
      };
      for (uint64_t step = 0; step < 30; ++step) {
        const uint64_t what = rng.below(3 * step, 10), n = rng.below(3 * step + 1, 40);
        if (what < 3) {
          const auto more = random_tokens(static_cast<int64_t>(n), seed * 100 + step);
          session.append(ctx_, more);
          read_more(more);
        } else if (what < 5 && !tokens.empty()) {
          read_more(generate(ctx_, session, static_cast<int64_t>(n % 12), step));
        } else if (what < 6) {
          session = session.fork();
        } else {
          const size_t back = rng.below(3 * step + 2, size_t(reach) + 1);
          if (tokens.size() - floor < back) continue;
          session.rollback(ctx_, static_cast<int64_t>(back));
          tokens.resize(tokens.size() - back);
        }
        if (tokens.empty()) continue;
        expect_same(session, model_.session_of(tokens),
                    fmt::format("reach {}, seed {}, step {}", reach, seed, step));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(SessionTest, RollbackBeyondWhatIsPossibleChangesNothing) {
  const auto tokens = random_tokens(9, 13);
  Session none = model_.session_of(tokens);
  expect_refused([&] { none.rollback(ctx_, 1); }, "rollback of 1 tokens, want 0..0");

  Session session = model_.session({.rollback_tokens = 16});
  session.append(ctx_, tokens);
  expect_refused([&] { session.rollback(ctx_, 10); }, "want at most the 9");
  expect_refused([&] { session.rollback(ctx_, 17); }, "want 0..16");
  expect_refused([&] { session.rollback(ctx_, -1); }, "want 0..16");
  expect_same(session, model_.session_of(tokens), "after refusals");
  session.rollback(ctx_, 9);
  EXPECT_EQ(session.position(), 0);
  EXPECT_TRUE(session.logits().empty());
  EXPECT_EQ(session.hash(), model_.session().hash());
  session.append(ctx_, tokens);
  expect_same(session, model_.session_of(tokens), "read again");
}

TEST_F(SessionTest, ThreadCountChangesNothing) {
  if (!bits_are_promised()) GTEST_SKIP() << "bits are promised on AVX-512";
  const auto tokens = random_tokens(200, 14);
  const Session two = model_.session_of(tokens);
  for (const int threads : {1, 3}) {
    Context other({.threads = threads});
    Session session(model_.stack, SmallModel::kFingerprint, other);
    session.append(other, tokens);
    expect_same(session, two, fmt::format("{} threads", threads));
  }
}

// Only a growing slot needs more memory for more tokens.
TEST(SessionMemory, FixedAndRingStatesStopGrowing) {
  SmallModel model("(mamba2:state=16,head=16 swa:24,heads=4 swiglu)x2");
  Session session = model.session();
  session.append(model.ctx, random_tokens(600, 15));
  const int64_t bytes = session.state_bytes();
  session.append(model.ctx, random_tokens(3000, 16));
  EXPECT_EQ(session.state_bytes(), bytes);
  int64_t promised = 0;
  for (const StateSpec& spec : model.stack.state_specs()) promised += state_bytes(spec, 3600);
  EXPECT_EQ(bytes, promised);
}

// After warm-up a decode step asks the device for nothing but the pages of growing slots.
TEST(SessionMemory, DecodeAllocatesNoActivations) {
  SmallModel model;
  Session session = model.session();
  session.append(model.ctx, random_tokens(70, 17));
  const int32_t token = 5;
  session.append(model.ctx, std::span(&token, 1));
  const size_t before = model.ctx.arena().allocations();
  for (int i = 0; i < 100; ++i) session.append(model.ctx, std::span(&token, 1));
  EXPECT_EQ(model.ctx.arena().allocations(), before);
}

}  // namespace
}  // namespace braid
