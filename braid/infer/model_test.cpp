// Goal: a model finds its tokenizer beside its weights, under the names that publishers use.
// Method: a reference checkpoint of RWKV-LM with a small vocabulary in its format.

#include "braid/infer/model.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/files.h"
#include "tests/support/text.h"

namespace braid {
namespace {

TEST(Model, ReadsTheVocabularyThatComesWithRwkv) {
  const test::TemporaryFolder folder;
  std::filesystem::copy_file(test::golden("rwkv7_blink") / "model.safetensors",
                             folder / "model.safetensors");
  Context ctx({.threads = 1});
  EXPECT_FALSE(Model::load(ctx, folder.path()).has_tokenizer());
  test::write_bytes(folder / "rwkv_vocab_v20230424.txt", test::world_vocabulary());
  const Model model = Model::load(ctx, folder.path());
  ASSERT_TRUE(model.has_tokenizer());
  EXPECT_EQ(model.tokenizer().decode(model.tokenizer().encode("it's the", {})), "it's the");
  test::write_bytes(folder / "tokenizer.json", "{");  // comes first where both are there
  test::expect_refused([&] { Model::load(ctx, folder.path()); }, "tokenizer.json");
}

}  // namespace
}  // namespace braid
