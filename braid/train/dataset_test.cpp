// Text files become token files once: what is in them, when they are made again, and which damage
// is noticed.

#include "braid/train/dataset.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>

#include "braid/core/error.h"
#include "braid/core/file.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() : folder_(fs::temp_directory_path() / fmt::format("braid-data-{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~DatasetTest() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, std::string_view text) {
    const fs::path path = folder_ / name;
    write_text(path, text);
    return path;
  }
  // One token per byte; counts its calls, so that reuse can be seen.
  DocumentEncoder encoder(uint64_t fingerprint = 1) {
    return {.encode =
                [this](std::string_view text) {
                  ++calls_;
                  return std::vector<int32_t>(text.begin(), text.end());
                },
            .fingerprint = fingerprint,
            .vocab = 258,
            .start = 256,
            .end = 257};
  }

  fs::path folder_;
  ThreadPool threads_{2};
  std::atomic<int> calls_ = 0;
};

std::vector<int32_t> document(const Dataset& data, int64_t d) {
  std::vector<int32_t> tokens(static_cast<size_t>(data.length(d)));
  data.read(d, 0, tokens);
  return tokens;
}

TEST(SplitDocuments, SeparatesAtWholeLinesOnly) {
  using Documents = std::vector<std::string_view>;
  EXPECT_EQ(split_documents(""), Documents{});
  EXPECT_EQ(split_documents("<|endoftext|>\n"), Documents{});
  EXPECT_EQ(split_documents("a\nb"), (Documents{"a\nb"}));
  EXPECT_EQ(split_documents("a\n<|endoftext|>\nb\n<|endoftext|>"), (Documents{"a", "b"}));
  EXPECT_EQ(split_documents("a\r\n<|endoftext|>\r\nb"), (Documents{"a", "b"}));
  EXPECT_EQ(split_documents("a\n\n<|endoftext|>\n\n<|endoftext|>\nb\n"), (Documents{"a\n", "b\n"}));
  EXPECT_EQ(split_documents("a <|endoftext|>\n<|endoftext|>b"),
            (Documents{"a <|endoftext|>\n<|endoftext|>b"}));
}

TEST_F(DatasetTest, WhatIsRefusedLeavesNoFolder) {
  DocumentEncoder picky = encoder();
  picky.encode = [](std::string_view) -> std::vector<int32_t> { fail(ErrorKind::kFormat, "no"); };
  const fs::path cache = folder_ / "run" / "data";
  for (const fs::path& text :
       {folder_ / "absent.txt", write("empty.txt", ""), write("a.txt", "a")}) {
    const fs::path files[] = {text};
    EXPECT_THROW(Dataset::open(files, picky, threads_, cache), Error);
    EXPECT_FALSE(fs::exists(folder_ / "run")) << text;
  }
  fs::create_directories(folder_ / "run");
  const fs::path files[] = {folder_ / "a.txt"};
  EXPECT_THROW(Dataset::open(files, picky, threads_, cache), Error);
  EXPECT_TRUE(fs::exists(folder_ / "run"));
  EXPECT_FALSE(fs::exists(cache));
}

TEST_F(DatasetTest, DocumentsCarryTheirStartAndEnd) {
  const fs::path files[] = {write("a.txt", "xy\n<|endoftext|>\nz"), write("b.txt", "w")};
  const Dataset data = Dataset::open(files, encoder(), threads_, folder_ / "data");
  ASSERT_EQ(data.documents(), 3);
  EXPECT_EQ(document(data, 0), (std::vector<int32_t>{256, 'x', 'y', 257}));
  EXPECT_EQ(document(data, 1), (std::vector<int32_t>{256, 'z', 257}));
  EXPECT_EQ(document(data, 2), (std::vector<int32_t>{256, 'w', 257}));
  EXPECT_EQ(data.text_bytes(), 4);
  EXPECT_EQ(data.tokens(), 10);
  EXPECT_EQ(data.predictions(), 7);
  std::vector<int32_t> beyond(4);
  EXPECT_THROW(data.read(2, 0, beyond), Error);
}

TEST_F(DatasetTest, IsReusedUntilTextOrTokenizerChange) {
  const fs::path files[] = {write("a.txt", "hello")};
  const auto open = [&](uint64_t tokenizer) {
    calls_ = 0;
    const Dataset data = Dataset::open(files, encoder(tokenizer), threads_, folder_ / "data");
    return data.fingerprint();
  };
  const uint64_t first = open(1);
  EXPECT_EQ(calls_, 1);
  EXPECT_EQ(open(1), first);
  EXPECT_EQ(calls_, 0);
  EXPECT_NE(open(2), first);
  EXPECT_EQ(calls_, 1);
  write("a.txt", "hello!");
  EXPECT_NE(open(2), first);
  EXPECT_EQ(calls_, 1);
}

TEST_F(DatasetTest, TokenFilesAreUsedAsTheyAre) {
  const fs::path text = write("a.txt", "hello");
  const fs::path tokens[] = {folder_ / "a.tokens"};
  write_token_file(text, encoder(), threads_, tokens[0]);
  fs::remove(text);
  EXPECT_EQ(Dataset::open(tokens, encoder(), threads_, folder_ / "data").tokens(), 7);
  EXPECT_THROW(Dataset::open(tokens, encoder(2), threads_, folder_ / "data"), Error);
}

TEST_F(DatasetTest, LargeVocabulariesTakeFourBytes) {
  const TokenSource source{.vocab = 1 << 20};
  TokenFileWriter writer(folder_ / "a.tokens", source);
  writer.add_document(std::vector<int32_t>{(1 << 20) - 1, 0, 70000}, 1);
  EXPECT_THROW(writer.add_document(std::vector<int32_t>{1 << 20}, 1), Error);
  writer.commit();
  std::vector<int32_t> back(3);
  TokenFile(folder_ / "a.tokens").read(0, back);
  EXPECT_EQ(back, (std::vector<int32_t>{(1 << 20) - 1, 0, 70000}));
}

TEST_F(DatasetTest, RefusesDamagedFiles) {
  const fs::path path = folder_ / "a.tokens";
  write_token_file(write("a.txt", "some words\n<|endoftext|>\nmore"), encoder(), threads_, path);
  const std::string good = read_text(path);
  ASSERT_NO_THROW(TokenFile{path});
  for (size_t cut = 0; cut < good.size(); cut += 7) {
    write_text(path, std::string_view(good).substr(0, cut));
    EXPECT_THROW(TokenFile{path}, Error) << cut;
  }
  for (size_t at = good.size() - 56; at < good.size() - 16; ++at) {  // table and counts
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x41);
    write_text(path, bad);
    EXPECT_THROW(TokenFile{path}, Error) << at;
  }
}

TEST_F(DatasetTest, ErrorsNameTheFile) {
  const auto message = [&](const fs::path& path) -> std::string {
    const fs::path files[] = {path};
    try {
      Dataset::open(files, encoder(), threads_, folder_ / "data");
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(folder_ / "missing.txt").find("missing.txt"), std::string::npos);
  EXPECT_NE(message(write("empty.txt", "")).find("empty.txt"), std::string::npos);
  EXPECT_NE(message(write("junk.tokens", "junk")).find("junk.tokens"), std::string::npos);
  // An error of the tokenizer, thrown in a worker, arrives.
  DocumentEncoder bad = encoder();
  bad.encode = [](std::string_view) -> std::vector<int32_t> {
    fail(ErrorKind::kFormat, "tokenizer: no such byte");
  };
  const fs::path files[] = {write("c.txt", "text")};
  EXPECT_THROW(Dataset::open(files, bad, threads_, folder_ / "data"), Error);
}

}  // namespace
}  // namespace braid
