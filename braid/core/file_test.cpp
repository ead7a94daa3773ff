// Goal: a file is whole or as it was, and nothing else is left behind. Method: every way a write
// can end, in a directory of its own that is listed afterwards.

#include "braid/core/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <set>

#include "tests/support/files.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;

class FileTest : public ::testing::Test {
 protected:
  std::set<std::string> listing() {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path())) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
  test::TemporaryFolder folder_;
  const std::string old_ = "old contents";
};

using Names = std::set<std::string>;

TEST_F(FileTest, NothingChangesBeforeCommit) {
  const fs::path path = folder_ / "f";
  write_text(path, old_);
  {
    AtomicFile file(path);
    file.write("new ");
    file.write(std::string(3 << 20, 'x'));  // more than the buffer
    EXPECT_EQ(read_text(path), old_);
    file.write("end");
    file.commit();
  }
  EXPECT_EQ(read_text(path), "new " + std::string(3 << 20, 'x') + "end");
  EXPECT_EQ(listing(), Names{"f"});
}

TEST_F(FileTest, AnAbandonedWriteLeavesNothing) {
  const fs::path path = folder_ / "f";
  {
    AtomicFile file(path);
    file.write(std::string(3 << 20, 'x'));
  }
  EXPECT_EQ(listing(), Names{});
  write_text(path, old_);
  { AtomicFile(path).write("new"); }
  EXPECT_EQ(read_text(path), old_);
  EXPECT_EQ(listing(), Names{"f"});
}

TEST_F(FileTest, TwoWritersOfOnePathKeepApart) {
  const fs::path path = folder_ / "f";
  AtomicFile first(path), second(path);
  first.write("first");
  second.write("second");
  EXPECT_EQ(listing().size(), 2u);
  second.commit();
  EXPECT_EQ(read_text(path), "second");
  first.commit();
  EXPECT_EQ(read_text(path), "first");
  EXPECT_EQ(listing(), Names{"f"});
}

TEST_F(FileTest, AWriteThatFailsLeavesTheOldFile) {
  const fs::path path = folder_ / "f";
  write_text(path, old_);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 8192, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string refused;
  try {
    write_text(path, std::string(10'000, 'x'));
  } catch (const Error& error) {
    refused = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(refused, "cannot write " + path.string() + ": File too large");
  EXPECT_EQ(read_text(path), old_);
  EXPECT_EQ(listing(), Names{"f"});
}

TEST_F(FileTest, PathsThatAreNoFile) {
  expect_refused([&] { write_text(folder_ / "no" / "f", "x"); }, "No such file or directory");
  fs::create_directory(folder_ / "d");
  expect_refused([&] { write_text(folder_ / "d", "x"); }, "not a regular file");
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  expect_refused([&] { write_text(folder_ / "fifo", "x"); }, "not a regular file");
  expect_refused([&] { write_text("/dev/null", "x"); }, "not a regular file");
  expect_refused([&] { read_text(folder_ / "d"); }, "not a regular file");
  expect_refused([&] { read_text(folder_ / "absent"); }, "No such file or directory");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_EQ(listing(), (Names{"d", "fifo"}));
}

TEST_F(FileTest, ALinkStaysALink) {
  write_text(folder_ / "f", old_);
  fs::create_symlink("f", folder_ / "link");
  write_text(folder_ / "link", "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_text(folder_ / "f"), "new");
  EXPECT_EQ(listing(), (Names{"f", "link"}));
}

TEST_F(FileTest, ReadsAndMaps) {
  write_text(folder_ / "empty", "");
  EXPECT_EQ(read_text(folder_ / "empty"), "");
  EXPECT_TRUE(MappedFile::open(folder_ / "empty")->bytes().empty());
  write_text(folder_ / "f", std::string("\0\1\2\3\4\5\6\7", 8));
  EXPECT_EQ(read_text(folder_ / "f").size(), 8u);
  expect_refused([&] { read_text(folder_ / "f", 7); }, "8 bytes, want at most 7");

  Tensor x;
  {
    const auto file = MappedFile::open(folder_ / "f");
    x = file->tensor(4, {4}, DType::kU8);
    expect_refused([&] { file->tensor(4, {5}, DType::kU8); }, "ends past the file's 8 bytes");
    expect_refused([&] { file->tensor(9, {0}, DType::kU8); }, "ends past");
  }
  EXPECT_EQ(x.data<uint8_t>()[3], 7);  // the mapping lives as long as its tensors
  release_mapped_pages(x);
  EXPECT_EQ(x.data<uint8_t>()[3], 7);
}

}  // namespace
}  // namespace braid
