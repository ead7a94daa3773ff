// Goal: published architectures give the logits of their reference implementation. Method: tiny
// checkpoints in tests/golden with reference logits of one whole forward (float64 arithmetic) and
// greedy continuations; max |dlogit| <= 2e-4 max |logit|, greedy tokens equal, also in pieces and
// through a saved session; saved under native names, a model gives the same bits.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "braid/infer/model.h"
#include "braid/model/checkpoint.h"
#include "braid/model/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(test::golden(""))) {
    if (fs::exists(entry.path() / "config.json")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct Golden {
  std::vector<int32_t> tokens, greedy;
  Tensor logits;  // (T, V)
};

std::vector<int32_t> ids(const Tensor& x) {
  const int64_t* data = x.data<int64_t>();
  return {data, data + x.count()};
}

Golden load_golden(const fs::path& directory) {
  const auto file = SafetensorsFile::open(directory / "expected.safetensors");
  Golden golden;
  golden.tokens = ids(file.tensor("input_ids"));
  golden.greedy = ids(file.tensor("greedy"));
  const Tensor logits = file.tensor("logits");
  golden.logits = logits.reshape({logits.dim(1), logits.dim(2)});
  return golden;
}

// max |got - want| over the rows of `got`, which start at row `first` of the reference.
double worst(const Tensor& got, const Tensor& want, int64_t first) {
  double error = 0;
  const int64_t V = want.dim(1);
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t j = 0; j < V; ++j) {
      const double d = got.f32()[i * V + j] - want.f32()[(first + i) * V + j];
      error = std::isnan(d) ? INFINITY : std::max(error, std::abs(d));
    }
  }
  return error;
}

double largest(const Tensor& x) {
  double scale = 0;
  for (int64_t i = 0; i < x.count(); ++i) {
    scale = std::max(scale, std::abs(static_cast<double>(x.f32()[i])));
  }
  return scale;
}

// Rotary scales that depend on the whole length have no cached form that equals a whole forward.
bool depends_on_length(const std::string& name) {
  return name == "llama_dynamic" || name == "llama_longrope";
}

class Parity : public ::testing::TestWithParam<std::string> {
 protected:
  fs::path directory() const { return test::golden(GetParam()); }
  Context ctx_;
};

TEST_P(Parity, LogitsOfAWholeForward) {
  const Golden golden = load_golden(directory());
  const Model model = Model::load(ctx_, directory());
  const auto T = static_cast<int64_t>(golden.tokens.size());
  const Tensor y = model.stack().forward(ctx_, golden.tokens, SequenceBatch::single(T));
  ASSERT_EQ(y.shape(), golden.logits.shape());
  EXPECT_LE(worst(y, golden.logits, 0), 2e-4 * largest(golden.logits));
}

TEST_P(Parity, LogitsInPieces) {
  if (depends_on_length(GetParam())) GTEST_SKIP() << "angles depend on the whole length";
  const Golden golden = load_golden(directory());
  const Model model = Model::load(ctx_, directory());
  const std::vector<std::vector<int64_t>> cuts = {{1, 47}, {17, 31}, std::vector<int64_t>(48, 1)};
  for (const auto& cut : cuts) {
    State state = model.stack().make_state(ctx_);
    State* states[] = {&state};
    std::span<const int32_t> rest = golden.tokens;
    for (const int64_t n : cut) {
      const int64_t at = state.position();
      const Tensor y = model.stack().forward(ctx_, rest.first(static_cast<size_t>(n)),
                                             SequenceBatch::single(n, at), {.states = states});
      EXPECT_LE(worst(y, golden.logits, at), 2e-4 * largest(golden.logits)) << "at " << at;
      rest = rest.subspan(static_cast<size_t>(n));
    }
  }
}

TEST_P(Parity, GreedyTokensThroughASavedSession) {
  if (GetParam() == "llama_dynamic") GTEST_SKIP() << "each reference step has its own angles";
  const Golden golden = load_golden(directory());
  const Model model = Model::load(ctx_, directory());
  const auto greedy = [&](Session& session) {
    Sampler sampler({.temperature = 0});
    std::vector<int32_t> made;
    session.generate(ctx_, sampler, static_cast<int64_t>(golden.greedy.size()), [&](int32_t token) {
      made.push_back(token);
      return true;
    });
    return made;
  };
  Session whole = model.session(ctx_);
  whole.append(ctx_, golden.tokens);
  EXPECT_EQ(greedy(whole), golden.greedy);
  if (depends_on_length(GetParam())) return;

  const fs::path file = fs::path(::testing::TempDir()) / (GetParam() + ".session");
  Session first = model.session(ctx_);
  first.append(ctx_, std::span(golden.tokens).first(17));
  first.save(ctx_, file);
  Session second = model.session(ctx_);
  second.load(file);
  EXPECT_EQ(second.position(), 17);
  EXPECT_EQ(second.hash(), first.hash());
  second.append(ctx_, std::span(golden.tokens).subspan(17));
  EXPECT_EQ(greedy(second), golden.greedy);
  fs::remove(file);
}

// Under native names, with the stack as its spec, a model is the same bits.
TEST_P(Parity, SurvivesANativeCheckpoint) {
  const Golden golden = load_golden(directory());
  const Checkpoint source = Checkpoint::open(directory());
  Stack stack(source.config());
  stack.load(ctx_, source);
  std::vector<NamedTensor> tensors;
  for (const auto& [name, parameter] : stack.parameters()) {
    std::vector<float> values;
    for (const Tensor& part : source.sources(name, parameter->shape)) {
      values.insert(values.end(), part.f32(), part.f32() + part.count());
    }
    tensors.emplace_back(name, host_tensor(std::move(values), parameter->shape));
  }
  const fs::path out = fs::path(::testing::TempDir()) / ("braid-native-" + GetParam());
  save_checkpoint(out, {.config = &source.config(), .tensors = tensors});
  const Model saved = Model::load(ctx_, out);
  fs::remove_all(out);
  const auto batch = SequenceBatch::single(static_cast<int64_t>(golden.tokens.size()));
  const Tensor want = stack.forward(ctx_, golden.tokens, batch);
  EXPECT_TRUE(test::same_bits(saved.stack().forward(ctx_, golden.tokens, batch), want));
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity, ::testing::ValuesIn(golden_names()),
                         [](const auto& golden) { return golden.param; });

// A small trained Llama: 200 greedy tokens and their text.
TEST(Stories260K, GreedyTextIsTheReference) {
  const fs::path directory = fs::path(BRAID_SOURCE_DIR) / "../shared/weights/stories260k";
  if (!fs::exists(directory)) GTEST_SKIP() << directory << " is not here";
  Context ctx;
  const Model model = Model::load(ctx, directory);
  const auto expected = SafetensorsFile::open(directory / "expected.safetensors");
  std::vector<int32_t> want;
  for (const std::string& name : expected.names()) {
    if (name.find("greedy") != std::string::npos && name.find("logits") == std::string::npos) {
      want = ids(expected.tensor(name));
    }
  }
  ASSERT_EQ(want.size(), 200u);
  Session session = model.session(ctx);
  session.append(ctx, model.tokenizer().encode("", {.special = true}));
  Sampler sampler({.temperature = 0});
  std::vector<int32_t> made;
  session.generate(ctx, sampler, 200, [&](int32_t token) {
    made.push_back(token);
    return true;
  });
  EXPECT_EQ(made, want);
  std::string text = read_text(directory / "expected_greedy_200.txt");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  EXPECT_EQ(model.tokenizer().decode(made), text);
}

}  // namespace
}  // namespace braid
