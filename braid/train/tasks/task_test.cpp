// Every example of every task is checked against the task's definition, read off its tokens alone,
// and is a pure function of its number.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "braid/core/error.h"
#include "braid/train/tasks/task_source.h"

namespace braid {
namespace {

constexpr int64_t kExamples = 200;

TrainingBatch examples_of(const std::string& spec, int64_t count = kExamples, uint64_t seed = 1,
                          TaskSplit split = TaskSplit::kTrain) {
  const TaskExamples examples(spec, seed, split);
  TrainingBatch batch;
  for (int64_t i = 0; i < count; ++i) examples.append(i, batch);
  return batch;
}

struct Example {
  std::vector<int32_t> tokens, targets;
};

std::vector<Example> split_examples(const TrainingBatch& batch) {
  std::vector<Example> examples;
  for (int64_t s = 0; s < batch.batch.sequences(); ++s) {
    const auto begin = batch.batch.offsets[static_cast<size_t>(s)];
    const auto end = begin + batch.batch.length(s);
    examples.push_back({{batch.tokens.begin() + begin, batch.tokens.begin() + end},
                        {batch.targets.begin() + begin, batch.targets.begin() + end}});
  }
  return examples;
}

void expect_refused(const std::string& spec, const std::string& text) {
  try {
    make_task(spec);
    FAIL() << spec << " was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

class EveryTask : public ::testing::TestWithParam<TaskEntry> {};

TEST_P(EveryTask, ExamplesHaveTheShapeTheyPromise) {
  const std::string spec(GetParam().example);
  const TaskShape shape = make_task(spec)->shape();
  for (const auto& [tokens, targets] : split_examples(examples_of(spec))) {
    ASSERT_EQ(static_cast<int64_t>(tokens.size()), shape.length);
    int64_t answers = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      ASSERT_TRUE(0 <= tokens[i] && tokens[i] < shape.vocab) << tokens[i];
      ASSERT_TRUE(-1 <= targets[i] && targets[i] < shape.vocab) << targets[i];
      answers += targets[i] >= 0;
    }
    ASSERT_EQ(answers, shape.answers);
  }
}

TEST_P(EveryTask, ExamplesAreAFunctionOfTheirNumber) {
  const std::string spec(GetParam().example);
  const TrainingBatch whole = examples_of(spec, 12);
  TaskSource source(TaskExamples(spec, 1, TaskSplit::kTrain), 4);
  const auto n = static_cast<size_t>(source.tokens_per_batch());
  for (const size_t k : {2, 0, 1}) {  // in any order
    const TrainingBatch part = source.batch(static_cast<int64_t>(k));
    EXPECT_TRUE(std::equal(part.tokens.begin(), part.tokens.end(),
                           whole.tokens.begin() + static_cast<ptrdiff_t>(k * n)));
    EXPECT_TRUE(std::equal(part.targets.begin(), part.targets.end(),
                           whole.targets.begin() + static_cast<ptrdiff_t>(k * n)));
  }
  // Examples, seeds and splits share nothing.
  std::set<std::vector<int32_t>> seen;
  size_t made = 0;
  for (const uint64_t seed : {1, 2}) {
    for (const TaskSplit split : {TaskSplit::kTrain, TaskSplit::kHeldOut}) {
      for (const Example& e : split_examples(examples_of(spec, 50, seed, split))) {
        seen.insert(e.tokens);
        ++made;
      }
    }
  }
  EXPECT_EQ(seen.size(), made);
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryTask,
                         ::testing::ValuesIn(task_registry().begin(), task_registry().end()),
                         [](const auto& test) { return std::string(test.param.name); });

void check_mqar(const std::string& spec, int64_t pairs, int64_t vocab, bool filler) {
  std::set<std::vector<int32_t>> key_orders;
  for (const auto& [tokens, targets] : split_examples(examples_of(spec))) {
    std::map<int32_t, int32_t> value_of;
    std::set<int32_t> values;
    for (size_t p = 0; p < static_cast<size_t>(pairs); ++p) {
      const int32_t key = tokens[2 * p], value = tokens[2 * p + 1];
      ASSERT_TRUE(1 <= key && key < vocab / 2) << key;
      ASSERT_TRUE(vocab / 2 <= value && value < vocab) << value;
      ASSERT_TRUE(value_of.emplace(key, value).second) << "key " << key << " twice";
      ASSERT_TRUE(values.insert(value).second) << "value " << value << " twice";
      ASSERT_EQ(targets[2 * p], -1);
      ASSERT_EQ(targets[2 * p + 1], -1);
    }
    std::set<int32_t> asked;
    for (size_t i = static_cast<size_t>(2 * pairs); i < tokens.size(); ++i) {
      if (targets[i] < 0) {
        if (filler) {
          ASSERT_EQ(tokens[i], 0);
        }
        continue;
      }
      ASSERT_EQ(i % 2, 0u);
      ASSERT_TRUE(value_of.contains(tokens[i]));
      ASSERT_EQ(targets[i], value_of[tokens[i]]);
      ASSERT_TRUE(asked.insert(tokens[i]).second) << "asked twice";
    }
    ASSERT_EQ(static_cast<int64_t>(asked.size()), pairs);
    key_orders.insert({tokens.begin(), tokens.begin() + 2 * pairs});
  }
  EXPECT_GT(key_orders.size(), 1u);
}

TEST(Mqar, AsksEveryKeyOnceForItsValue) {
  check_mqar("mqar:pairs=4,len=64,vocab=512", 4, 512, true);
  check_mqar("mqar:pairs=8,len=33,vocab=19", 8, 19, true);  // every key and the fewest slots
  check_mqar("mqar:pairs=1,len=4,vocab=4", 1, 4, true);
  check_mqar("mqar:pairs=16,len=256,vocab=512,random_non_queries=1", 16, 512, false);
}

TEST(Mqar, NoiseIsDrawnFromTheWholeVocabulary) {
  std::map<int32_t, int> seen;
  for (const auto& [tokens, targets] :
       split_examples(examples_of("mqar:pairs=1,len=64,vocab=8,random_non_queries=1"))) {
    for (size_t i = 2; i < tokens.size(); ++i) seen[tokens[i]] += targets[i] < 0;
  }
  const double expected = kExamples * 61 / 8.0;
  for (int32_t id = 0; id < 8; ++id) {
    EXPECT_NEAR(seen[id], expected, 5 * std::sqrt(expected)) << id;
  }
}

// The chance of slot i is in proportion to i^(a-1): of one pair directly, and of the second of two
// by the definition of drawing without replacement.
TEST(Mqar, GapsFollowThePowerLaw) {
  constexpr int64_t kMany = 20000, kSlots = 8;
  for (const double power : {0.01, 1.0, 3.0}) {
    std::vector<double> p;
    double total = 0;
    for (int64_t i = 1; i <= kSlots; ++i) total += std::pow(static_cast<double>(i), power - 1);
    for (int64_t i = 1; i <= kSlots; ++i) {
      p.push_back(std::pow(static_cast<double>(i), power - 1) / total);
    }
    std::vector<double> first(kSlots), second(kSlots), want_second(kSlots);
    const std::string spec =
        fmt::format("mqar:pairs=2,len={},vocab=16,power={}", 4 + 2 * kSlots, power);
    for (const auto& [tokens, targets] : split_examples(examples_of(spec, kMany))) {
      for (size_t slot = 0; slot < kSlots; ++slot) {
        const size_t at = 4 + 2 * slot;
        if (targets[at] >= 0) (tokens[at] == tokens[0] ? first : second)[slot] += 1;
      }
    }
    for (size_t i = 0; i < kSlots; ++i) {
      for (size_t j = 0; j < kSlots; ++j) {
        if (j != i) want_second[i] += p[j] * p[i] / (1 - p[j]);
      }
      const auto close = [&](double count, double chance) {
        EXPECT_NEAR(count, kMany * chance, 5 * std::sqrt(kMany * chance)) << power << " slot " << i;
      };
      close(first[i], p[i]);
      close(second[i], want_second[i]);
    }
  }
}

TEST(Mqar, RefusesWhatCannotBe) {
  expect_refused("mqar:pairs=17,len=64", "mqar: column 6: pairs is \"17\", want at most len / 4");
  expect_refused("mqar:pairs=8,len=64,vocab=16", "want fewer than vocab / 2");
  expect_refused("mqar:power=0", "mqar: column 6: power");
}

TEST(Task, RefusesWithTheColumn) {
  expect_refused("", "task: column 1: found the end, want the name of a task");
  expect_refused("mqat", "task: column 1: found \"mqat\", want a task, one of mqar");
  expect_refused("mqar mqar", "task: column 5: found \" mqar\", want the end");
  expect_refused("mqar:pairs=", "task: column 12: found the end, want a value for pairs");
  expect_refused("mqar:keys=3", "mqar: column 6: unknown option keys, want one of pairs, len");
  expect_refused("mqar:len=1", "mqar: column 6: len is \"1\", want an integer from");
  expect_refused("mqar:len=8,len=9", "is given twice");
}

TEST(SelectiveCopy, RepeatsTheDataInOrder) {
  for (const auto& [count, length, vocab] :
       std::vector<std::tuple<size_t, size_t, int32_t>>{{4, 32, 10}, {8, 16, 5}, {1, 2, 3}}) {
    std::set<size_t> places;
    for (const auto& [tokens, targets] : split_examples(examples_of(
             fmt::format("selective_copy:tokens={},len={},vocab={}", count, length, vocab)))) {
      std::vector<int32_t> data;
      for (size_t i = 0; i < length - count; ++i) {
        ASSERT_EQ(targets[i], -1);
        if (tokens[i] == 0) continue;
        ASSERT_GE(tokens[i], 2);
        data.push_back(tokens[i]);
        places.insert(i);
      }
      ASSERT_EQ(data.size(), count);
      for (size_t j = 0; j < count; ++j) {
        ASSERT_EQ(tokens[length - count + j], 1);
        ASSERT_EQ(targets[length - count + j], data[j]);
      }
    }
    EXPECT_EQ(places.size(), length - count) << "some places are never used";
  }
  expect_refused("selective_copy:tokens=9,len=16", "tokens is \"9\", want at most len / 2");
}

TEST(Induction, AsksWhatFollowedTheMark) {
  for (const auto& [length, vocab] :
       std::vector<std::pair<size_t, int32_t>>{{64, 17}, {3, 3}, {20, 4}}) {
    std::set<size_t> places;
    for (const auto& [tokens, targets] : split_examples(
             examples_of(fmt::format("induction:len={},vocab={}", length, vocab), 1000))) {
      const auto mark = std::find(tokens.begin(), tokens.end(), vocab - 1);
      places.insert(static_cast<size_t>(mark - tokens.begin()));
      ASSERT_EQ(std::count(tokens.begin(), tokens.end(), vocab - 1), 2);
      ASSERT_EQ(tokens.back(), vocab - 1);
      ASSERT_LT(mark + 1, tokens.end() - 1);
      ASSERT_EQ(targets.back(), mark[1]);
    }
    EXPECT_TRUE(places.contains(0) && places.contains(length - 3)) << "the ends are never used";
  }
}

TEST(Group, AnswersAreTheProductSoFar) {
  for (const int64_t modulus : {2, 7, 60}) {
    const std::string spec = fmt::format("modular:group=z{},len=33", modulus);
    for (const auto& [tokens, targets] : split_examples(examples_of(spec))) {
      int64_t sum = 0;
      for (size_t t = 0; t < tokens.size(); ++t) {
        sum += tokens[t];
        ASSERT_EQ(targets[t], sum % modulus);
      }
    }
  }
  for (const auto& [tokens, targets] : split_examples(examples_of("parity:len=33"))) {
    int32_t odd = 0;
    for (size_t t = 0; t < tokens.size(); ++t) ASSERT_EQ(targets[t], odd ^= tokens[t]);
  }
}

// Ids are read as permutations by their factorial digits, apart from how the task makes its table.
TEST(Group, PermutationsAreComposed) {
  for (const int32_t points : {3, 4, 5}) {
    const auto permutation = [&](int32_t id) {
      std::vector<int32_t> rest, digits, out;
      for (int32_t i = 0; i < points; ++i) rest.push_back(i);
      for (int32_t base = 1; base <= points; id /= base++) digits.insert(digits.begin(), id % base);
      for (const int32_t digit : digits) {
        out.push_back(rest[static_cast<size_t>(digit)]);
        rest.erase(rest.begin() + digit);
      }
      return out;
    };
    std::set<int32_t> seen;
    const std::string spec = fmt::format("modular:group=s{},len=21", points);
    for (const auto& [tokens, targets] : split_examples(examples_of(spec))) {
      std::vector<int32_t> product = permutation(0);
      for (size_t t = 0; t < tokens.size(); ++t) {
        const auto factor = permutation(tokens[t]), before = product;
        for (size_t i = 0; i < product.size(); ++i) {
          product[i] = before[static_cast<size_t>(factor[i])];
        }
        ASSERT_EQ(permutation(targets[t]), product) << spec << " at " << t;
        seen.insert(targets[t]);
      }
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), make_task(spec)->shape().vocab);
  }
}

TEST(Group, TheLastAnswerAloneIsThatOfAll) {
  const auto all = split_examples(examples_of("modular:group=s3,len=9"));
  const auto last = split_examples(examples_of("modular:group=s3,len=9,answers=last"));
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(last[i].tokens, all[i].tokens);
    EXPECT_EQ(last[i].targets.back(), all[i].targets.back());
    EXPECT_EQ(std::count(last[i].targets.begin(), last[i].targets.end(), -1), 8);
  }
  for (const char* group : {"z1", "z1025", "s2", "s6", "z", "a5", "z5x"}) {
    expect_refused(fmt::format("modular:group={}", group), "want z2 to z1024, s3, s4 or s5");
  }
  expect_refused("parity:answers=some", "want one of all, last");
}

void check_needles(int64_t needles, int64_t length, int64_t vocab, int64_t distance) {
  const std::string spec = fmt::format("needle:needles={},len={},vocab={},distance={}", needles,
                                       length, vocab, distance);
  const int64_t noise = vocab / 2, first_value = noise + (vocab - noise) / 2;
  std::set<int64_t> distances;
  for (const auto& [tokens, targets] : split_examples(examples_of(spec))) {
    std::map<int32_t, size_t> keys;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      if (tokens[i] < noise) continue;
      ASSERT_LT(tokens[i], first_value) << "a value without a key";
      ASSERT_TRUE(keys.emplace(tokens[i], i).second) << "key " << tokens[i] << " twice";
      ASSERT_GE(tokens[++i], first_value) << "a key without a value";
    }
    ASSERT_EQ(static_cast<int64_t>(keys.size()), needles);
    ASSERT_TRUE(keys.contains(tokens.back()));
    const size_t at = keys[tokens.back()];
    ASSERT_EQ(targets.back(), tokens[at + 1]);
    distances.insert(static_cast<int64_t>(tokens.size() - 1 - at));
  }
  if (distance > 0) {
    EXPECT_EQ(distances, std::set<int64_t>{distance});
  } else {
    EXPECT_EQ(*distances.begin(), 2) << spec;
    EXPECT_EQ(*distances.rbegin(), length - 1) << spec;
  }
}

TEST(Needle, AsksAValueAtItsDistance) {
  check_needles(1, 40, 64, 0);
  check_needles(1, 4, 4, 0);
  check_needles(4, 17, 16, 0);
  check_needles(3, 64, 33, 2);
  check_needles(3, 64, 33, 63);
  check_needles(16, 64, 64, 30);
  expect_refused("needle:needles=17,len=64", "want at most len / 4");
  expect_refused("needle:needles=3,vocab=8", "want at most vocab / 4");
  expect_refused("needle:distance=1", "want 0, or from 2 to len - 1");
  expect_refused("needle:len=64,distance=64", "want 0, or from 2 to len - 1");
}

}  // namespace
}  // namespace braid
