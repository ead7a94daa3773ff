// Whole tokenizers: text -> ids -> text on random texts for every kind, ids one at a time, special
// tokens, and files that are wrong.

#include "braid/model/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "braid/core/error.h"
#include "braid/core/file.h"
#include "braid/model/tokenizer/bpe.h"
#include "braid/model/tokenizer/parts.h"
#include "tests/support/text.h"

namespace braid {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;
using test::byte_level_json;
using test::sentencepiece_json;

constexpr const char* kSplit =
    R"("normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},)";
constexpr const char* kAdded =
    R"({"id": 300, "content": "<|endoftext|>", "special": true, "normalized": false})";

struct Kind {
  const char* name;
  std::shared_ptr<const Tokenizer> tokenizer;
};

std::vector<Kind> kinds() {
  return {{"bytes", Tokenizer::bytes()},
          {"world", Tokenizer::from_world_vocabulary(test::world_vocabulary())},
          {"byte level", Tokenizer::from_json(byte_level_json(kSplit, kAdded))},
          {"one word", Tokenizer::from_json(byte_level_json(
                           R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
                  "use_regex": false},)"))},
          {"sentencepiece", Tokenizer::from_json(sentencepiece_json())}};
}

// U+2581 is a space to SentencePiece, whatever it was before.
std::string without_metaspace(std::string text) {
  for (size_t at; (at = text.find("▁")) != std::string::npos;) text.replace(at, 3, 1, ' ');
  return text;
}

TEST(Tokenizer, DecodingGivesTheTextBack) {
  std::mt19937 random(1);
  for (const Kind& kind : kinds()) {
    for (int i = 0; i < 400; ++i) {
      const std::string text = without_metaspace(test::random_utf8(random, 80));
      ASSERT_EQ(kind.tokenizer->decode(kind.tokenizer->encode(text)), text) << kind.name;
    }
  }
}

TEST(Tokenizer, StreamingGivesWhatDecodeGives) {
  std::mt19937 random(2);
  for (const Kind& kind : kinds()) {
    for (int i = 0; i < 200; ++i) {
      Ids ids(random() % 30);
      const auto vocab = static_cast<uint32_t>(kind.tokenizer->vocab_size());
      for (int32_t& id : ids) {
        do id = static_cast<int32_t>(random() % vocab);
        while (kind.tokenizer->parts().detokenizer.has(id) == false);
      }
      const DecodeOptions options{.skip_special = i % 2 == 0, .continuation = i % 3 == 0};
      StreamingDecoder decoder(*kind.tokenizer, options);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = decoder.push(id);
        ASSERT_FALSE(invalid_utf8_offset(part));
        text += part;
      }
      text += decoder.finish();
      ASSERT_EQ(text, kind.tokenizer->decode(ids, options)) << kind.name;
    }
  }
}

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const auto tokenizer = Tokenizer::load("bytes");
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  const Ids ids = tokenizer->encode(text);
  for (int32_t byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[static_cast<size_t>(byte)], byte);
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document_id(), 256);
  EXPECT_EQ(tokenizer->decode(Ids{72, 256}, {.skip_special = true}), "H");
  EXPECT_EQ(tokenizer->encode("<|endoftext|>").size(), 13u);
}

TEST(Tokenizer, WorldTakesTheLongestMatchOfAnyBytes) {
  const auto tokenizer = Tokenizer::from_world_vocabulary(test::world_vocabulary());
  EXPECT_EQ(tokenizer->encode(" the"), Ids{259});
  EXPECT_EQ(tokenizer->encode("it's\xe2\x80\xff"), (Ids{262, 264, 256}));
  EXPECT_EQ(tokenizer->end_of_document_id(), 0);
}

TEST(Tokenizer, SpecialTokens) {
  const auto tokenizer = Tokenizer::from_json(sentencepiece_json());
  EXPECT_EQ(tokenizer->encode("the", {.special = true}), (Ids{1, 269, 262}));
  EXPECT_EQ(tokenizer->encode("", {.special = true}), Ids{1});
  // Each piece of text between special tokens is a text to the normalizer.
  EXPECT_EQ(tokenizer->encode("the</s>the"), (Ids{269, 262, 2, 269, 262}));
  EXPECT_EQ(tokenizer->decode(Ids{1, 269, 262}, {.skip_special = true}), "the");
  EXPECT_EQ(tokenizer->decode(Ids{1, 269, 262}), "<s> the");
  EXPECT_EQ(tokenizer->decode(Ids{269}, {.continuation = true}), " th");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->token_id("</s>"), 2);
  EXPECT_EQ(tokenizer->token_id("absent"), std::nullopt);
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(1 << 30));
}

TEST(Tokenizer, UnknownCharactersFuse) {
  json file = json::parse(sentencepiece_json());
  file["model"]["byte_fallback"] = false;
  EXPECT_EQ(Tokenizer::from_json(file.dump())->encode("xyzte"), (Ids{259, 0, 260, 262}));
  file["model"]["fuse_unk"] = false;
  EXPECT_EQ(Tokenizer::from_json(file.dump())->encode("xyt"), (Ids{259, 0, 0, 260}));
  file["model"].erase("unk_token");
  EXPECT_THROW(Tokenizer::from_json(file.dump())->encode("x"), Error);
}

TEST(Tokenizer, LongWordsMergeAsShortOnesDo) {
  // The two ways of merging must agree with the definition: of all pairs, the best, leftmost.
  const tok::Bpe::Merges merges = {{"a", "b"},   {"b", "a"},   {"ab", "a"},  {"a", "a"},
                                   {"ab", "ab"}, {"aa", "aa"}, {"aba", "b"}, {"b", "b"}};
  tok::Vocabulary vocabulary{{"a", 0}, {"b", 1}};
  for (const auto& [left, right] : merges) {
    vocabulary.emplace(left + right, static_cast<int32_t>(vocabulary.size()));
  }
  const tok::Bpe model(vocabulary, merges, {});
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    std::vector<std::string> symbols(1 + random() % 90);
    std::string word;
    for (std::string& symbol : symbols) {
      symbol.assign(1, random() % 3 == 0 ? 'b' : 'a');
      word += symbol;
    }
    while (true) {
      size_t best = merges.size(), where = 0;
      for (size_t s = 0; s + 1 < symbols.size(); ++s) {
        const auto pair = std::pair(symbols[s], symbols[s + 1]);
        const auto rank =
            static_cast<size_t>(std::find(merges.begin(), merges.end(), pair) - merges.begin());
        if (rank < best) best = rank, where = s;
      }
      if (best == merges.size()) break;
      symbols[where] += symbols[where + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
    }
    Ids want, got;
    for (const std::string& symbol : symbols) want.push_back(vocabulary.at(symbol));
    model.encode(word, got);
    ASSERT_EQ(got, want) << word;
  }
}

TEST(Tokenizer, AMegabyteIsOneWordWithoutPreTokenizer) {
  std::mt19937 random(4);
  std::string text;
  while (text.size() < (size_t{1} << 20)) text += random() % 5 == 0 ? " the" : "th aeéon";
  const auto tokenizer = Tokenizer::from_json(sentencepiece_json());
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  const auto spaces = Tokenizer::from_json(byte_level_json(kSplit));
  const std::string blank(size_t{1} << 20, ' ');
  EXPECT_EQ(spaces->decode(spaces->encode(blank + "x")), blank + "x");
}

TEST(Tokenizer, RepeatedWordsComeFromMemoryUnchanged) {
  const auto tokenizer = Tokenizer::from_json(byte_level_json(kSplit));
  std::string text;
  Ids want;
  for (int i = 0; i < 3000; ++i) {
    const std::string word = " on" + std::to_string(i % 7) + "ther";
    text += word;
    const Ids ids = tokenizer->encode(word);
    want.insert(want.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(tokenizer->encode(text), want);
}

std::string message_of(const std::string& file) {
  try {
    const auto tokenizer = Tokenizer::from_json(file);
    tokenizer->encode("the text");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(HostileTokenizer, IsRefusedInOneLineThatNamesTheFault) {
  const json good = json::parse(sentencepiece_json());
  const std::tuple<const char*, json, const char*> kCases[] = {
      {"/model/type", "Unigram", "Unigram"},
      {"/model/vocab/é", 3, "id 3"},
      {"/model/vocab/é", -1, "-1"},
      {"/model/vocab/é", 4000000000u, "4000000000"},
      {"/model/vocab/é", 1.5, "1.5"},
      {"/model/vocab/é", "x", "x"},
      {"/model/merges/0", "▁ q", "is no token"},
      {"/model/merges/0", "a", "merge 0"},
      {"/model/merges/1", json::array({"t"}), "merge 1"},
      {"/model/merges", "t h", "merges"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/unk_token", "absent", "absent"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/surprise", 1, "surprise"},
      {"/surprise", 1, "surprise"},
      {"/normalizer/normalizers/0/type", "Nmt", "Nmt"},
      {"/normalizer/normalizers/0", good["normalizer"], "Sequence"},
      {"/normalizer/normalizers/1/pattern/String", "", "pattern"},
      {"/normalizer/normalizers/0/prepend", std::string(5000, 'x'), "5000"},
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, "UnicodeScripts"},
      {"/pre_tokenizer", 3, "pre_tokenizer"},
      {"/decoder/decoders/1/type", "CTC", "CTC"},
      {"/decoder/decoders/3/stop", 1, "Strip"},
      {"/post_processor/single/0/SpecialToken/id", "<x>", "<x>"},
      {"/post_processor/special_tokens/<s>/ids/0", 999, "999"},
      {"/post_processor/single", json::array(), "0 times"},
      {"/added_tokens/0/id", 5, "contradicts"},
      {"/added_tokens/0/content", "", "0 bytes"},
      {"/added_tokens/1", good["added_tokens"][0], "twice"},
      {"/added_tokens/1/flavour", 1, "flavour"}};
  ASSERT_EQ(message_of(good.dump()), "");
  for (const auto& [where, value, named] : kCases) {
    json bad = good;
    bad[json::json_pointer(where)] = value;
    const std::string message = message_of(bad.dump());
    EXPECT_NE(message.find(named), std::string::npos) << where << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(HostileTokenizer, EveryTruncationIsRefused) {
  const std::string good = byte_level_json(kSplit, kAdded);
  for (size_t size = 0; size < good.size(); size += 7) {
    ASSERT_THROW(Tokenizer::from_json(good.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(Tokenizer::from_json(std::string(100000, '[')), Error);
  EXPECT_THROW(Tokenizer::from_json("{\"model\": {\"vocab\": {\"\xff\": 0}, \"merges\": []}}"),
               Error);
}

TEST(HostileTokenizer, FlippedBytesNeverCrash) {
  const std::string good = sentencepiece_json();
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    for (int flips = 0; flips < 3; ++flips) {
      bad[random() % bad.size()] = static_cast<char>(random() % 128);
    }
    message_of(bad);
  }
}

TEST(HostileTokenizer, WorldLines) {
  const std::string good = test::world_vocabulary();
  for (const char* line : {"1 'x' 1", "300 'xy' 3", "300 xy 2", "300 'x 1", "-3 'xy' 2", "300 'xy'",
                           "9999999 'xy' 2", "300 '\\q' 1", "300 '\\ud800' 3", "300 '' 0",
                           "0 'xy' 2", "300 'th' 2", "300 '\\x4' 1", "300 'xy'z 2"}) {
    EXPECT_THROW(Tokenizer::from_world_vocabulary(good + line + "\n"), Error) << line;
  }
  EXPECT_THROW(Tokenizer::from_world_vocabulary(good.substr(0, 500)), Error);
  EXPECT_THROW(Tokenizer::from_world_vocabulary(""), Error);
}

TEST(HostileTokenizer, IdsAndTexts) {
  for (const Kind& kind : kinds()) {
    for (const int32_t id : {-1, kind.tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
      EXPECT_THROW(kind.tokenizer->decode(Ids{id}), Error) << kind.name;
    }
  }
  const auto tokenizer = Tokenizer::from_json(byte_level_json(kSplit));
  try {
    tokenizer->encode("abc\xff");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("byte 3"), std::string::npos);
  }
  EXPECT_THROW(Tokenizer::load("/nonexistent/tokenizer.json"), Error);
}

}  // namespace
}  // namespace braid
