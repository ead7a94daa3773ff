// Goal: a saved session goes on as if it had never been away, and no other file changes a session.
// Method: round trips against the session that stayed; a good file with one thing changed at a time
// must be refused in one line that names it, and leave session and files as they were.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <functional>
#include <map>

#include "braid/infer/session.h"
#include "braid/model/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"
#include "tests/support/small_model.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::random_tokens;
using test::SmallModel;

struct Contents {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

Contents read_contents(const fs::path& path) {
  const auto file = SafetensorsFile::open(path);
  Contents contents{.tensors = {}, .metadata = file.metadata()};
  for (const std::string& name : file.names()) contents.tensors[name] = file.tensor(name);
  return contents;
}

void write_contents(const fs::path& path, const Contents& contents) {
  const std::vector<NamedTensor> list(contents.tensors.begin(), contents.tensors.end());
  save_safetensors(path, list, contents.metadata);
}

class SessionFile : public ::testing::Test {
 protected:
  void expect_same(const Session& got, const Session& want) {
    EXPECT_EQ(got.position(), want.position());
    EXPECT_EQ(got.hash(), want.hash());
    EXPECT_EQ(std::vector<float>(got.logits().begin(), got.logits().end()),
              std::vector<float>(want.logits().begin(), want.logits().end()));
  }

  // The saved file with `edit` applied must be refused with `part` in the message.
  void refuses(const std::function<void(Contents&)>& edit, std::string_view part) {
    const fs::path good = folder_ / "good", bad = folder_ / "bad";
    if (!fs::exists(good)) model_.session_of(tokens_).save(ctx_, good);
    Contents contents = read_contents(good);
    edit(contents);
    write_contents(bad, contents);
    refuses_file(bad, part);
  }
  void refuses_file(const fs::path& bad, std::string_view part) {
    Session session = model_.session_of({1, 2, 3});
    const Session before = session.fork();
    const std::string what = test::refusal([&] { session.load(bad); });
    EXPECT_NE(what.find(part), std::string::npos) << what << "\nwant: " << part;
    EXPECT_NE(what.find(bad.string()), std::string::npos) << what;
    expect_same(session, before);
    const std::vector<int32_t> more = {4, 5};
    session.append(ctx_, more);
    expect_same(session, model_.session_of({1, 2, 3, 4, 5}));
  }

  test::TemporaryFolder folder_;
  SmallModel model_;
  Context& ctx_ = model_.ctx;
  std::vector<int32_t> tokens_ = random_tokens(75, 21);
};

TEST_F(SessionFile, GoesOnWithIdenticalTokens) {
  for (const int64_t length :
       {1, 63, 64, 65, 300, 500}) {  // the ring of 6 pages has wrapped at 500
    Session session = model_.session_of(random_tokens(length, 22));
    session.save(ctx_, folder_ / "s");
    Session loaded = model_.session({.rollback_tokens = 16});
    loaded.append(ctx_, tokens_);  // what it was before does not matter
    loaded.load(folder_ / "s");
    expect_same(loaded, session);
    Sampler a({.temperature = 1, .seed = 5}), b({.temperature = 1, .seed = 5});
    std::vector<int32_t> want, got;
    const auto into = [](std::vector<int32_t>& list) {
      return [&list](int32_t token) { return list.push_back(token), true; };
    };
    session.generate(ctx_, a, 100, into(want));
    loaded.generate(ctx_, b, 100, into(got));
    EXPECT_EQ(got, want) << length;
    expect_same(loaded, session);
  }
}

TEST_F(SessionFile, OfNothingReadYet) {
  model_.session().save(ctx_, folder_ / "s");
  Session session = model_.session_of(tokens_);
  session.load(folder_ / "s");
  expect_same(session, model_.session());
  session.append(ctx_, tokens_);
  expect_same(session, model_.session_of(tokens_));
}

TEST_F(SessionFile, AfterARollback) {
  Session session = model_.session({.rollback_tokens = 16});
  session.append(ctx_, tokens_);  // the last page of 75 tokens goes with the rollback
  session.rollback(ctx_, 14);
  session.save(ctx_, folder_ / "s");
  Session loaded = model_.session({.rollback_tokens = 16});
  loaded.load(folder_ / "s");
  expect_same(loaded, session);
  expect_refused([&] { loaded.rollback(ctx_, 1); }, "want at most the 0");
  loaded.append(ctx_, random_tokens(20, 23));
  loaded.rollback(ctx_, 16);
  session.append(ctx_, random_tokens(4, 23));
  expect_same(loaded, session);
}

TEST_F(SessionFile, TheSameStateGivesTheSameBytes) {
  model_.session_of(tokens_).save(ctx_, folder_ / "a");
  Session loaded = model_.session();
  loaded.load(folder_ / "a");
  loaded.save(ctx_, folder_ / "b");
  EXPECT_EQ(test::read_bytes(folder_ / "a"), test::read_bytes(folder_ / "b"));
}

TEST_F(SessionFile, RefusesAnotherModel) {
  Session other(model_.stack, 42, ctx_);
  other.append(ctx_, tokens_);
  other.save(ctx_, folder_ / "other");
  refuses_file(folder_ / "other", "session of the model 000000000000002a, want 0123456789abcdef");

  SmallModel narrow("(mamba2:state=8,head=16 swa:24,heads=4 attn:heads=4 swiglu)x2");
  Session session(narrow.stack, SmallModel::kFingerprint, narrow.ctx);
  session.append(narrow.ctx, tokens_);
  session.save(narrow.ctx, folder_ / "narrow");
  refuses_file(folder_ / "narrow", "want (");
}

TEST_F(SessionFile, RefusesOtherMetadata) {
  const auto set = [](const char* key, const char* value) {
    return [=](Contents& c) { c.metadata[key] = value; };
  };
  refuses([](Contents& c) { c.metadata.clear(); }, "not a session file");
  refuses(set("format", "pt"), "not a session file");
  refuses(set("version", "9"), "session format version 9, want");
  refuses(set("version", "one"), "version is not a number");
  refuses([](Contents& c) { c.metadata.erase("hash"); }, "has no hash");
  refuses([](Contents& c) { c.metadata.erase("position"); }, "has no position");
  refuses(set("position", "-1"), "position is not a number");
  refuses(set("position", "75 "), "position is not a number");
  refuses(set("position", "18446744073709551616"), "position is not a number");
  refuses(set("position", "18446744073709551615"), "session position 18446744073709551615");
  refuses(set("position", "9223372036854775807"), "session position");
  refuses(set("position", "281474976710656"), "has no tensor");  // 2^48 tokens
}

TEST_F(SessionFile, RefusesAPositionThatIsNotItsOwn) {
  for (const char* position : {"0", "1", "64", "74", "76", "129", "100000"}) {
    refuses([&](Contents& c) { c.metadata["position"] = position; }, "");
  }
  refuses([](Contents& c) { c.metadata["hash"] = "0000000000000001"; }, "");
}

TEST_F(SessionFile, RefusesMissingAndUnknownTensors) {
  std::vector<std::string> names;
  model_.session_of(tokens_).save(ctx_, folder_ / "good");
  for (const auto& [name, tensor] : read_contents(folder_ / "good").tensors) names.push_back(name);
  EXPECT_GT(names.size(), 10u);
  for (const std::string& name : names) {
    refuses([&](Contents& c) { c.tensors.erase(name); }, "");
  }
  refuses([](Contents& c) { c.tensors["sublayers.9.0.keys.0"] = c.tensors.begin()->second; },
          "tensors, want");
}

TEST_F(SessionFile, RefusesOtherShapesAndTypes) {
  model_.session_of(tokens_).save(ctx_, folder_ / "good");
  for (const auto& entry : read_contents(folder_ / "good").tensors) {
    const std::string& name = entry.first;
    const Tensor& tensor = entry.second;
    const int64_t n = tensor.count();
    refuses([&](Contents& c) { c.tensors[name] = test::randn({n + 1}, 1); }, "want (");
    if (tensor.rank() == 1) {
      refuses([&](Contents& c) { c.tensors[name] = host_tensor(std::vector<int32_t>(n), {n}); },
              "i32");
      refuses([&](Contents& c) { c.tensors[name] = host_tensor(std::vector<BF16>(n), {n}); },
              "bf16");
    }
  }
}

TEST_F(SessionFile, RefusesACutFileAtEveryLength) {
  model_.session_of(tokens_).save(ctx_, folder_ / "good");
  const std::string bytes = test::read_bytes(folder_ / "good");
  Session session = model_.session();
  for (size_t n = 0; n < bytes.size(); n += n < 4096 ? 97 : bytes.size() / 7) {
    test::write_bytes(folder_ / "cut", std::string_view(bytes).substr(0, n));
    test::refusal([&] { session.load(folder_ / "cut"); });
  }
  test::write_bytes(folder_ / "cut", std::string_view(bytes).substr(0, bytes.size() - 1));
  refuses_file(folder_ / "cut", "");
  test::write_bytes(folder_ / "long", bytes + "x");
  refuses_file(folder_ / "long", "");
  refuses_file(folder_ / "absent", "No such file");
  EXPECT_EQ(session.position(), 0);
}

// A file-size limit stands for a full disk: write() fails after some bytes in both.
TEST_F(SessionFile, AFullDiskLeavesTheOldFile) {
  const Session old = model_.session_of({1, 2, 3});
  old.save(ctx_, folder_ / "s");
  const std::string before = test::read_bytes(folder_ / "s");
  const Session session = model_.session_of(tokens_);

  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 8192, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string refused, refused_new;
  try {
    session.save(ctx_, folder_ / "s");
  } catch (const Error& error) {
    refused = error.what();
  }
  try {
    session.save(ctx_, folder_ / "new");
  } catch (const Error& error) {
    refused_new = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);

  EXPECT_EQ(refused, fmt::format("cannot write {}: File too large", (folder_ / "s").string()));
  EXPECT_NE(refused_new, "");
  EXPECT_EQ(test::read_bytes(folder_ / "s"), before);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().filename(), "s");
    ++files;
  }
  EXPECT_EQ(files, 1);
}

TEST_F(SessionFile, PathsThatCannotBeWritten) {
  const Session session = model_.session_of(tokens_);
  expect_refused([&] { session.save(ctx_, folder_ / "no" / "such" / "folder"); }, "cannot create");
  expect_refused([&] { session.save(ctx_, folder_.path()); }, folder_.path().string());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace braid
