// Batches are a pure function of the step, predict every token of an epoch exactly once, and each
// target is the successor of its input within one document.

#include "braid/train/loader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>

#include "braid/train/schedule.h"

namespace braid {
namespace {

// Documents of these many tokens; the token ids are unique over the corpus and rise by one.
class LoaderTest : public ::testing::Test {
 protected:
  static constexpr int kVocab = 1 << 20;

  Dataset make(const std::vector<int>& lengths) {
    const auto path =
        std::filesystem::temp_directory_path() / fmt::format("braid-loader-{}.tokens", ::getpid());
    TokenFileWriter writer(path, {.vocab = kVocab});
    int32_t id = 0;
    for (const int length : lengths) {
      std::vector<int32_t> tokens;
      for (int i = 0; i < length; ++i) tokens.push_back(id++);
      writer.add_document(tokens, length);
    }
    writer.commit();
    std::vector<TokenFile> files;
    files.emplace_back(path);
    std::filesystem::remove(path);  // the mapping keeps it
    return Dataset(std::move(files));
  }
};

bool same(const TrainingBatch& a, const TrainingBatch& b) {
  return a.tokens == b.tokens && a.targets == b.targets && a.batch.offsets == b.batch.offsets &&
         a.batch.starts == b.batch.starts;
}

TEST_F(LoaderTest, EveryEpochPredictsEveryTokenOnce) {
  const Dataset data = make({1, 2, 3, 8, 9, 40, 41, 2, 100});
  Loader loader(data, {.length = 8, .batch = 3, .seed = 5});
  const int64_t steps = 24 * data.predictions() / std::gcd(int64_t{24}, data.predictions());
  std::map<int32_t, int> seen;
  for (int64_t k = 0; k < steps / 24; ++k) {
    const TrainingBatch b = loader.batch(k);
    ASSERT_EQ(b.tokens.size(), 24u);
    ASSERT_EQ(b.batch.tokens(), 24);
    for (int64_t s = 0; s < b.batch.sequences(); ++s) {
      EXPECT_LE(b.batch.length(s), 8);
      EXPECT_GE(b.batch.length(s), 1);
      EXPECT_EQ(b.batch.starts[static_cast<size_t>(s)], 0);
    }
    for (size_t i = 0; i < 24; ++i) {
      EXPECT_EQ(b.targets[i], b.tokens[i] + 1);
      ++seen[b.targets[i]];
    }
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), data.predictions());
  for (const auto& [target, count] : seen) EXPECT_EQ(count, steps / data.predictions()) << target;
}

TEST_F(LoaderTest, IsAPureFunctionOfTheStep) {
  const Dataset data = make({30, 5, 64, 7, 12, 3, 90});
  Loader forward(data, {.length = 16, .batch = 2, .seed = 1});
  std::vector<TrainingBatch> batches;
  for (int64_t k = 0; k < 40; ++k) batches.push_back(forward.batch(k));
  Loader backward(data, {.length = 16, .batch = 2, .seed = 1});
  for (int64_t k = 39; k >= 0; --k) {
    EXPECT_TRUE(same(backward.batch(k), batches[static_cast<size_t>(k)])) << k;
  }
  Loader other(data, {.length = 16, .batch = 2, .seed = 2});
  EXPECT_FALSE(same(other.batch(0), batches[0]));
}

TEST_F(LoaderTest, EpochsAreShuffledAndCutAnew) {
  const Dataset data = make({33, 65, 129, 31});
  Loader loader(data, {.length = 16, .batch = 1, .seed = 3});
  const int64_t steps = data.predictions() / 16;
  std::vector<int32_t> first, second;
  for (int64_t k = 0; k < steps; ++k) {
    const TrainingBatch a = loader.batch(k), b = loader.batch(k + steps);
    first.insert(first.end(), a.tokens.begin(), a.tokens.end());
    second.insert(second.end(), b.tokens.begin(), b.tokens.end());
  }
  EXPECT_NE(first, second);
  EXPECT_DOUBLE_EQ(loader.epochs(steps), static_cast<double>(steps * 16) / data.predictions());
}

TEST_F(LoaderTest, EvaluationReadsEverythingInOrderOrAnEvenSelection) {
  const Dataset data = make({20, 1, 5, 300});
  TrainingBatch all;
  for (const Piece& piece : evaluation_pieces(data, 8)) append(data, piece, all);
  EXPECT_EQ(static_cast<int64_t>(all.targets.size()), data.predictions());
  EXPECT_TRUE(std::is_sorted(all.targets.begin(), all.targets.end()));
  int64_t tokens = 0;
  const auto some = evaluation_pieces(data, 8, 100);
  for (const Piece& piece : some) tokens += piece.length;
  EXPECT_LE(tokens, 110);
  EXPECT_GE(tokens, 80);
  EXPECT_GT(some.back().begin, 200);
}

TEST(ScheduleTest, WarmsUpThenFallsToTheFloor) {
  const Schedule s{.peak = 1, .floor = 0.1, .warmup = 4, .steps = 14};
  EXPECT_DOUBLE_EQ(s.learning_rate(0), 0.25);
  EXPECT_DOUBLE_EQ(s.learning_rate(3), 1);
  EXPECT_DOUBLE_EQ(s.learning_rate(4), 1);
  EXPECT_DOUBLE_EQ(s.learning_rate(9), 0.55);
  EXPECT_DOUBLE_EQ(s.learning_rate(14), 0.1);
  EXPECT_DOUBLE_EQ(s.learning_rate(1000), 0.1);
  const Schedule flat{.peak = 2, .floor = 2, .warmup = 0, .steps = 10};
  EXPECT_DOUBLE_EQ(flat.learning_rate(0), 2);
  EXPECT_DOUBLE_EQ(flat.learning_rate(7), 2);
}

}  // namespace
}  // namespace braid
