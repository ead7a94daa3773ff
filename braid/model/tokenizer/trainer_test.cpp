// The trainer against the definition of byte pair encoding, written as plainly as it can be, and
// its file as a tokenizer.

#include "braid/model/tokenizer/trainer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/tokenizer/bpe_learner.h"
#include "braid/model/tokenizer/tokenizer.h"
#include "tests/support/text.h"

namespace braid {
namespace {

using Merges = std::vector<std::pair<int32_t, int32_t>>;
using Counts = std::map<std::string, int64_t>;

// Counts all pairs again for every merge. Stops where two merges would make one token.
Merges learn_plainly(const Counts& counts, int32_t tokens) {
  std::vector<std::pair<std::vector<int32_t>, int64_t>> words;
  for (const auto& [word, count] : counts) words.push_back({{word.begin(), word.end()}, count});
  Merges merges;
  for (int32_t id = 257; id < 257 + tokens; ++id) {
    std::map<std::pair<int32_t, int32_t>, int64_t> pairs;
    for (const auto& [word, count] : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) pairs[{word[i], word[i + 1]}] += count;
    }
    auto best = pairs.begin();
    for (auto pair = pairs.begin(); pair != pairs.end(); ++pair) {
      if (pair->second > best->second) best = pair;
    }
    if (best == pairs.end() || best->second < 2) break;
    merges.push_back(best->first);
    for (auto& [word, count] : words) {
      std::vector<int32_t> out;
      for (size_t i = 0; i < word.size(); ++i) {
        const bool here = i + 1 < word.size() && std::pair(word[i], word[i + 1]) == best->first;
        out.push_back(here ? id : word[i]);
        i += here;
      }
      word = out;
    }
  }
  return merges;
}

TEST(BpeLearner, LearnsWhatTheDefinitionSays) {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    Counts counts;
    for (int i = 0; i < 60; ++i) {
      std::string word;
      for (size_t n = 1 + random() % 9; n > 0; --n) word += static_cast<char>('a' + random() % 5);
      counts[word] += 1 + static_cast<int64_t>(random() % 50);
    }
    tok::BpeLearner learner(257);
    for (const auto& [word, count] : counts) learner.add_word(word, count);
    learner.learn(25, {});
    const Merges want = learn_plainly(counts, 25);
    // Up to the first token that has two merges the ids are those of the plain form.
    size_t same = 0;
    while (same < learner.tokens().size() && same < want.size() &&
           learner.merges()[same] == want[same]) {
      ++same;
    }
    if (learner.merges().size() == learner.tokens().size()) {
      EXPECT_EQ(learner.merges(), want);
    } else {
      EXPECT_GT(same, 5u);
    }
  }
}

struct Corpus {
  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("braid_trainer_" + std::to_string(::getpid()));
  std::filesystem::path text = folder / "text.txt", out = folder / "tokenizer.json";
  explicit Corpus(std::string_view contents) {
    std::filesystem::create_directories(folder);
    write_text(text, contents);
  }
  ~Corpus() { std::filesystem::remove_all(folder); }
  BpeTrainResult train(int32_t vocab, int threads = 2) const {
    const std::filesystem::path files[] = {text};
    return train_byte_level_bpe(files, out, {.vocab_size = vocab, .threads = threads});
  }
};

std::string sample() {
  std::mt19937 random(2);
  const char* words[] = {"the",  " cat", " sat",  " on",   " that",
                         " mat", "\n",   " it's", " 2024", "é"};
  std::string out;
  for (int i = 0; i < 4000; ++i) {
    out += words[random() % 10];
    if (i % 500 == 499) out += "\n<|endoftext|>\n";
  }
  return out;
}

TEST(Trainer, FileIsATokenizerThatGivesTextBack) {
  const Corpus corpus(sample());
  const BpeTrainResult result = corpus.train(290);
  EXPECT_EQ(result.vocab_size, 290);
  const auto tokenizer = Tokenizer::load(corpus.folder);
  EXPECT_EQ(tokenizer->vocab_size(), 290);
  EXPECT_EQ(tokenizer->end_of_document_id(), 256);
  EXPECT_EQ(tokenizer->encode("<|endoftext|>"), std::vector<int32_t>{256});
  EXPECT_EQ(tokenizer->encode(" cat").size(), 1u);
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const std::string text = test::random_utf8(random, 60);
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  // Nothing was learned across the separator.
  for (int32_t id = 257; id < 290; ++id) {
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{id}).find('<'), std::string::npos);
  }
}

TEST(Trainer, ResultDoesNotDependOnThreads) {
  std::string text;
  for (int i = 0; i < 70; ++i) text += sample();  // long enough to be cut
  const Corpus corpus(text);
  corpus.train(300, 1);
  const std::string one = read_text(corpus.out);
  corpus.train(300, 3);
  EXPECT_EQ(read_text(corpus.out), one);
}

TEST(Trainer, StopsWhenNoPairRepeats) {
  const Corpus corpus("abab cd");
  EXPECT_EQ(corpus.train(1000).vocab_size, 258);
  EXPECT_EQ(Tokenizer::load(corpus.out)->vocab_size(), 258);
}

TEST(Trainer, RefusesBadArguments) {
  const Corpus corpus("text \xff");
  EXPECT_THROW(corpus.train(300), Error);
  EXPECT_THROW(corpus.train(256), Error);
  EXPECT_FALSE(std::filesystem::exists(corpus.out));
}

}  // namespace
}  // namespace braid
