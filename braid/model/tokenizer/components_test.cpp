// The steps of the pipeline, one by one, against what Hugging Face tokenizers define for them.

#include <gtest/gtest.h>

#include "braid/core/error.h"
#include "braid/model/tokenizer/added_tokens.h"
#include "braid/model/tokenizer/byte_trie.h"
#include "braid/model/tokenizer/normalizer.h"
#include "braid/model/tokenizer/pair_map.h"
#include "braid/model/tokenizer/pre_tokenizer.h"
#include "braid/model/tokenizer/utf8.h"
#include "tests/support/text.h"

namespace braid::tok {
namespace {

using Strings = std::vector<std::string>;

std::string complete(std::string_view bytes, Utf8Stream::Replace replace) {
  Utf8Stream stream(replace);
  std::string out;
  stream.push(bytes, out);
  stream.finish(out);
  return out;
}

TEST(Utf8, FindsTheFirstByteThatIsNot) {
  EXPECT_EQ(invalid_utf8_offset("plain ascii, caf\u00e9 \U0001F600"), std::nullopt);
  const std::pair<const char*, size_t> kCases[] = {{"ab\xff", 2},
                                                   {"\xc0\x80", 0},
                                                   {"a\xed\xa0\x80", 1},
                                                   {"\xf4\x90\x80\x80", 0},
                                                   {"0123456789\xe2\x82", 10},
                                                   {"\xf0\x80\x80\x80", 0},
                                                   {"\x80", 0}};
  for (const auto& [text, offset] : kCases) EXPECT_EQ(invalid_utf8_offset(text), offset) << text;
}

TEST(Utf8, CodePointsRoundTrip) {
  for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_code_point(c, text);
    size_t at = 0;
    ASSERT_EQ(next_code_point(text, at), c);
    ASSERT_EQ(at, text.size());
    ASSERT_FALSE(invalid_utf8_offset(text));
  }
}

TEST(Utf8, ReplacesWhatIsIllFormed) {
  const auto kSequence = Utf8Stream::Replace::kSequence, kByte = Utf8Stream::Replace::kByte;
  EXPECT_EQ(complete("a\xe2\x82z", kSequence), "a\ufffdz");
  EXPECT_EQ(complete("a\xe2\x82z", kByte), "a\ufffd\ufffdz");
  EXPECT_EQ(complete("\xf0\x9f\x98", kSequence), "\ufffd");
  EXPECT_EQ(complete("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
                     "A",
                     kSequence),  // Unicode, table 3-11
            "\ufffd\ufffd\ufffd\ufffdA");
}

TEST(Utf8, StreamDoesNotDependOnTheCut) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const std::string bytes = test::random_utf8(random, 8) + test::random_bytes(random, 6);
    for (const auto replace : {Utf8Stream::Replace::kSequence, Utf8Stream::Replace::kByte}) {
      Utf8Stream stream(replace);
      std::string out;
      for (const char byte : bytes) {
        stream.push({&byte, 1}, out);
        ASSERT_FALSE(invalid_utf8_offset(out));
      }
      stream.finish(out);
      EXPECT_EQ(out, complete(bytes, replace));
    }
  }
}

TEST(PairMap, KeepsEveryPair) {
  PairMap map;
  for (uint32_t i = 0; i < 5000; ++i) map.insert(i % 71, i, i);
  EXPECT_EQ(map.size(), 5000u);
  for (uint32_t i = 0; i < 5000; ++i) {
    ASSERT_TRUE(map.find(i % 71, i));
    EXPECT_EQ(*map.find(i % 71, i), i);
    EXPECT_FALSE(map.find(i % 71 + 1, i));
  }
}

TEST(ByteTrie, FindsTheLongest) {
  ByteTrie trie;
  EXPECT_TRUE(trie.insert("a", 1));
  EXPECT_TRUE(trie.insert("abc", 2));
  EXPECT_FALSE(trie.insert("abc", 3));
  EXPECT_FALSE(trie.insert("", 3));
  EXPECT_EQ(trie.longest("abcd").value, 2);
  EXPECT_EQ(trie.longest("abd").length, 1u);
  EXPECT_EQ(trie.longest("b").value, -1);
}

TEST(Regex, RefusesWhatTheTwoEnginesReadDifferently) {
  for (const char* pattern : {"[a&&b]", "[a[bc]]", "\\h+", "(", "[a", "a\\", "(?<n>a"}) {
    EXPECT_THROW(Regex{pattern}, Error) << pattern;
  }
  EXPECT_NO_THROW(Regex("[]a]|[^]b]|[[:alpha:]]+"));
}

TEST(Regex, CatastrophicPatternEndsWithAnError) {
  const Regex regex("(a|aa)+[bc]");
  EXPECT_THROW(Regex::Search(regex).next(std::string(60, 'a'), 0), Error);
}

TEST(Regex, MongolianVowelSeparatorIsNoSpace) {
  const Regex regex("\\s");
  EXPECT_FALSE(Regex::Search(regex).next("\u180e\u200b", 0));
  EXPECT_TRUE(Regex::Search(regex).next("\u3000", 0));
}

Strings split(std::string_view text, SplitBehavior behavior, bool invert = false) {
  PreTokenizer steps;
  steps.add(Split{Regex("-"), behavior, invert});
  const Words words = steps.apply(std::string(text), true);
  Strings out;
  for (const Range& r : words.ranges) out.push_back(words.text.substr(r.begin, r.end - r.begin));
  return out;
}

TEST(PreTokenizer, SplitBehaviors) {
  const char* text = "the-final--countdown";
  EXPECT_EQ(split(text, SplitBehavior::kRemoved), (Strings{"the", "final", "countdown"}));
  EXPECT_EQ(split(text, SplitBehavior::kIsolated),
            (Strings{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(split(text, SplitBehavior::kMergedWithPrevious),
            (Strings{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(split(text, SplitBehavior::kMergedWithNext),
            (Strings{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(split(text, SplitBehavior::kContiguous),
            (Strings{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(split(text, SplitBehavior::kRemoved, /*invert=*/true), (Strings{"-", "-", "-"}));
}

TEST(PreTokenizer, MetaspacePutsOneInFront) {
  PreTokenizer steps;
  steps.add(Metaspace{"▁", Metaspace::Prefix::kAlways,
                      Split{Regex::literal("▁"), SplitBehavior::kMergedWithNext}});
  const Words words = steps.apply("Hey  you", true);
  EXPECT_EQ(words.text, "▁Hey▁▁you");
  EXPECT_EQ(words.ranges.size(), 3u);
}

TEST(Normalizer, Forms) {
  const auto apply = [](NormalizerStep step, std::string_view text) {
    Normalizer normalizer;
    normalizer.add(std::move(step));
    return normalizer.apply(text);
  };
  EXPECT_EQ(apply(UnicodeForm::kNfc, "e\u0301"), "\u00e9");
  EXPECT_EQ(apply(UnicodeForm::kNfd, "\u00e9"), "e\u0301");
  EXPECT_EQ(apply(UnicodeForm::kNfkc, "\ufb01"), "fi");
  EXPECT_EQ(apply(UnicodeForm::kNfc, "\ufb01"), "\ufb01");
  EXPECT_EQ(apply(UnicodeForm::kNfkd, "\u212b"), "A\u030a");
  EXPECT_EQ(apply(Lowercase{}, "\u0130\u03a3A"), "i\u0307\u03c3a");
  EXPECT_EQ(apply(StripSpace{}, " \u3000a b\n"), "a b");
  EXPECT_EQ(apply(StripSpace{}, " \n"), "");
  EXPECT_EQ(apply(ReplacePattern{Regex("x*"), "-"}, "abxc"), "-a-b-c-");
  EXPECT_EQ(apply(Prepend{"_"}, ""), "");
}

TEST(Normalizer, GrowthHasALimit) {
  Normalizer normalizer;
  for (int i = 0; i < 8; ++i) normalizer.add(ReplaceText{"a", std::string(1000, 'a')});
  EXPECT_THROW(normalizer.apply("aaaa"), Error);
}

TEST(AddedTokens, LongestAndStripped) {
  AddedTokens tokens;
  tokens.add("<a>", {.content = "<a>", .id = 1});
  tokens.add("<a><b>", {.content = "<a><b>", .id = 2});
  tokens.add("word", {.content = "word", .id = 3, .single_word = true});
  tokens.add("<m>", {.content = "<m>", .id = 4, .lstrip = true, .rstrip = true});
  const auto ids = [&](std::string_view text) {
    std::vector<int32_t> out;
    for (const auto& part : tokens.split(text)) out.push_back(part.id);
    return out;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(ids("x<a><b>y<a>"), (Ids{-1, 2, -1, 1}));
  EXPECT_EQ(ids("sword words word."), (Ids{-1, 3, -1}));
  EXPECT_EQ(ids("  <m>  <a>"), (Ids{4, 1}));
  EXPECT_EQ(ids(""), Ids{});
}

}  // namespace
}  // namespace braid::tok
