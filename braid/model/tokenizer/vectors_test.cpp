// Published tokenizers must give the ids that their own projects give, on texts chosen to be hard,
// and the text again from the ids. The files are not part of this project: absent, they are
// skipped.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "braid/core/file.h"
#include "braid/model/tokenizer/tokenizer.h"

namespace braid {
namespace {

const std::filesystem::path kFolder = BRAID_SOURCE_DIR "/../shared/tokenizers";

constexpr int32_t kLlama2Space = 29871;  // of U+2581

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> out;
  size_t at = 0;
  for (size_t end; (end = text.find(separator, at)) != text.npos; at = end + separator.size()) {
    out.push_back(text.substr(at, end - at));
  }
  out.push_back(text.substr(at));
  return out;
}

std::vector<int32_t> parse_ids(const std::string& line) {
  std::istringstream in(line);
  std::vector<int32_t> out;
  for (int32_t id; in >> id;) out.push_back(id);
  return out;
}

class Vectors : public testing::TestWithParam<const char*> {};

TEST_P(Vectors, IdsAreExactAndDecode) {
  const std::filesystem::path folder = kFolder / GetParam();
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const auto tokenizer = Tokenizer::load(folder);
  const auto texts = split(read_text(folder / "vectors.inp"), "\n__ggml_vocab_test__\n");
  const auto lines = split(read_text(folder / "vectors.out"), "\n");
  ASSERT_LE(texts.size(), lines.size());
  ASSERT_GT(texts.size(), 40u);
  // The vectors of the Llama 2 vocabulary say nothing about another one in the same format.
  const bool other =
      std::string_view(GetParam()) == "llama2" && tokenizer->token_id("\u2581") != kLlama2Space;
  for (const std::string& text : texts) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  if (other) GTEST_SKIP() << "vectors.out is of another vocabulary than tokenizer.json";
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(tokenizer->encode(texts[i]), parse_ids(lines[i])) << testing::PrintToString(texts[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Published, Vectors, testing::Values("llama2", "llama3", "qwen3"));

TEST(Vectors, World) {
  const std::filesystem::path folder = kFolder / "rwkv-world";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const auto tokenizer = Tokenizer::load(folder / "rwkv_vocab_v20230424.txt");
  EXPECT_EQ(tokenizer->vocab_size(), 65530);
  EXPECT_EQ(tokenizer->end_of_document_id(), 0);
  size_t count = 0;
  for (const std::string& line : split(read_text(folder / "vectors.json"), "\n")) {
    if (line.empty()) continue;
    const auto vector = nlohmann::json::parse(line);
    const auto text = vector["text"].get<std::string>();
    EXPECT_EQ(tokenizer->encode(text), vector["tokens"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    ++count;
  }
  EXPECT_GT(count, 0u);
}

TEST(Vectors, GptNeoX) {
  const std::filesystem::path folder = kFolder / "gpt-neox";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is absent";
  const auto tokenizer = Tokenizer::load(folder);
  EXPECT_EQ(tokenizer->vocab_size(), 50277);
  EXPECT_EQ(tokenizer->end_of_document_id(), 0);
  const std::string text =
      "def f(x):\n" + std::string(24, ' ') + "return 'caf\u00e9' \u4ee5<|endoftext|>x";
  const auto ids = tokenizer->encode(text);
  EXPECT_EQ(tokenizer->decode(ids), text);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 50254), 1);  // 24 spaces, an added token
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 0), 1);
}

}  // namespace
}  // namespace braid
