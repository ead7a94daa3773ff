// Goal: memory and speed do not depend on how long a text is where no state grows, and loading a
// model costs little more than its weights. Method: a million tokens read and a hundred thousand
// made, with resident memory and the CPU time of each window of tokens; the peak of a process that
// loads half a gigabyte. Every mixer reads a hundred thousand tokens.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <functional>
#include <tuple>

#include "braid/core/file.h"
#include "braid/infer/model.h"
#include "braid/model/presets.h"
#include "braid/model/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/small_model.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// VmRSS or VmHWM of this process, in bytes.
int64_t memory(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

// CPU time: what else the machine does is not counted.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<long>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

struct Level {
  int64_t tokens, window;
  std::string what;
  std::function<void()> step;   // a window of the long text
  std::function<void()> fresh;  // the same window at the beginning of a text
};

// Memory after the last token within 5% of that after 10,000; each of the last twenty windows is
// timed beside one of a fresh text, so that the machine's moods cancel: medians within 10%.
void expect_level(const Level& level) {
  std::vector<double> times, fresh_times;
  const int64_t windows = level.tokens / level.window;
  int64_t early = 0;
  for (int64_t i = 0; i < windows; ++i) {
    const double start = cpu_seconds();
    level.step();
    if (i == 0) level.fresh();  // beside the long text, as at the end: both are counted
    if (i < windows - 20) {
      if (early == 0 && (i + 1) * level.window >= 10'000) early = memory("VmRSS");
      continue;
    }
    const double middle = cpu_seconds();
    level.fresh();
    times.push_back(middle - start);
    fresh_times.push_back(cpu_seconds() - middle);
  }
  const int64_t late = memory("VmRSS");
  const double ratio = median(times) / median(fresh_times);
  std::printf(
      "%s: %.1f MiB after 10,000 tokens, %.1f MiB after %lld; %.0f tokens/s, %.3f of the "
      "time of a fresh text\n",
      level.what.c_str(), static_cast<double>(early) / 0x1p20, static_cast<double>(late) / 0x1p20,
      static_cast<long long>(level.tokens), static_cast<double>(level.window) / median(times),
      ratio);
  EXPECT_LE(static_cast<double>(late), 1.05 * static_cast<double>(early)) << level.what;
  EXPECT_LE(ratio, 1.10) << level.what;
}

void expect_level_session(Context& ctx, const Session& nothing, int64_t vocab,
                          const std::string& what) {
  Session session = nothing;
  // Whole pieces, as in one long prompt: other lengths would warm up arena blocks of their own.
  const auto text = test::random_tokens(20 * 512, 1, vocab);
  const auto window = static_cast<int64_t>(text.size());
  expect_level({100 * window, window, what + ", prefill", [&] { session.append(ctx, text); },
                [&] {
                  Session fresh = nothing;
                  fresh.append(ctx, text);
                }});
  const int64_t bytes = session.state_bytes();
  EXPECT_EQ(session.position(), 100 * window);

  Session prompt = nothing;
  prompt.append(ctx, std::span(text).first(512));
  Sampler sampler({.temperature = 1});
  const auto make = [&](Session& s) {
    s.generate(ctx, sampler, 1'000, [](int32_t) { return true; });
  };
  expect_level({100'000, 1'000, what + ", decode", [&] { make(session); },
                [&] {
                  Session fresh = prompt;
                  make(fresh);
                }});
  EXPECT_EQ(session.position(), 100 * window + 100'000);
  for (const float logit : session.logits()) ASSERT_TRUE(std::isfinite(logit)) << what;
  EXPECT_EQ(session.state_bytes(), bytes);
}

TEST(LongText, ARandomHybrid) {
  test::SmallModel model("(mamba2:state=16,head=16 swa:64,heads=4 swiglu)x2");
  Context ctx({.threads = 1});
  expect_level_session(ctx, model.session(), test::SmallModel::kVocab, "random hybrid");
}

TEST(LongText, TheShippedModel) {
  const fs::path directory = fs::path(BRAID_SOURCE_DIR) / "models/young-readers";
  if (!fs::exists(directory / "config.json")) GTEST_SKIP() << directory << " is not here";
  Context ctx({.threads = 1});
  const Model model = Model::load(ctx, directory);
  for (const StateSpec& spec : model.stack().state_specs()) {
    if (state_bytes(spec, 2'000'000) != state_bytes(spec, 1'000'000)) {
      GTEST_SKIP() << "its state grows";
    }
  }
  expect_level_session(ctx, model.session(ctx), model.config().vocab, "young-readers");
}

TEST(LongText, The2027Stack) {
  Context ctx({.threads = 1});
  const ModelConfig config = preset_config(find_preset("survey2027:tiny"));
  Stack stack(config, {.matrix_dtype = DType::kBF16});
  stack.initialize(ctx, Rng(1));
  expect_level_session(ctx, Session(stack, 1, ctx), config.vocab, "survey2027:tiny");
}

// Every mixer that streams, between bfloat16 matrices: its numbers stay finite, and memory stays
// level where the state does.
class EveryMixer : public ::testing::TestWithParam<SublayerEntry> {};

TEST_P(EveryMixer, ReadsAHundredThousandTokens) {
  constexpr int64_t kTokens = 100'000, kWindow = 2'000, kEarly = 10'000;
  const SublayerEntry& entry = GetParam();
  Context ctx({.threads = 1});
  Stack stack(test::SmallModel::config(fmt::format("({} swiglu)x2", entry.example)),
              {.matrix_dtype = DType::kBF16});
  stack.initialize(ctx, Rng(1));
  State state = stack.make_state(ctx);
  State* const states[] = {&state};
  int64_t early = 0;
  for (int64_t at = 0; at < kTokens; at += kWindow) {
    const auto tokens = test::random_tokens(kWindow, static_cast<uint64_t>(at));
    const Tensor logits = stack.forward(ctx, tokens, SequenceBatch::single(kWindow, at),
                                        {.states = states, .rows = {{0, kWindow - 1}}});
    for (int64_t i = 0; i < logits.count(); ++i) {
      ASSERT_TRUE(std::isfinite(logits.f32()[i])) << "in the " << kWindow << " from " << at;
    }
    if (at + kWindow == kEarly) early = memory("VmRSS");
  }
  int64_t bytes = 0, early_bytes = 0;
  for (const StateSpec& spec : stack.state_specs()) {
    bytes += state_bytes(spec, kTokens);
    early_bytes += state_bytes(spec, kEarly);
  }
  const int64_t late = memory("VmRSS");
  std::printf("%s: %.1f KiB of state, %.1f MiB resident, %+.1f since token %lld\n",
              entry.example.data(), static_cast<double>(bytes) / 0x1p10,
              static_cast<double>(late) / 0x1p20, static_cast<double>(late - early) / 0x1p20,
              static_cast<long long>(kEarly));
  if (entry.traits.state_grows) return;
  EXPECT_EQ(bytes, early_bytes);
  EXPECT_LE(static_cast<double>(late), 1.05 * static_cast<double>(early));
}

// Without full attention and long convolutions: their cost grows with every token.
std::vector<SublayerEntry> streaming_mixers() {
  std::vector<SublayerEntry> entries;
  for (const SublayerEntry& entry : sublayer_registry()) {
    const bool bounded = !entry.traits.state_grows || entry.name == "linformer_causal";
    if (entry.traits.mixer && entry.traits.streams && bounded) entries.push_back(entry);
  }
  return entries;
}

INSTANTIATE_TEST_SUITE_P(LongText, EveryMixer, ::testing::ValuesIn(streaming_mixers()),
                         [](const auto& entry) { return std::string(entry.param.name); });

// A native checkpoint of random bfloat16 matrices, written without ever being in memory.
void write_large_model(const fs::path& directory, const ModelConfig& config) {
  const Stack stack(config);
  std::vector<SafetensorsDeclaration> list;
  for (const auto& [name, parameter] : stack.parameters()) {
    list.push_back({name, parameter->shape, parameter->matrix ? DType::kBF16 : DType::kF32});
  }
  fs::create_directories(directory);
  write_text(directory / "config.json", print_config(config));
  SafetensorsWriter writer(directory / "model.safetensors", list);
  const Rng rng(1);
  std::vector<BF16> block(1 << 16);
  for (size_t i = 0; i < block.size(); ++i) block[i] = to_bf16(0.02f * rng.normal(i));
  for (const auto& declaration : list) {
    size_t left = static_cast<size_t>(declaration.shape.count()) * size_of(declaration.dtype);
    for (; left > 0; left -= std::min(left, block.size() * 2)) {
      writer.append(block.data(), std::min(left, block.size() * 2));
    }
  }
  writer.commit();
}

TEST(Loading, PeakIsLittleMoreThanTheWeights) {
  const test::TemporaryFolder folder;
  ModelConfig config;
  config.width = 1024;
  config.vocab = 32'000;
  config.dtype = DType::kBF16;
  config.sublayers = parse_stack("(attn:heads=16 swiglu mamba2:state=64,head=64)x11");
  write_large_model(folder / "model", config);

  // A process of its own, whose peak begins at what this one holds now.
  int result[2];
  ASSERT_EQ(pipe(result), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int64_t figures[3] = {memory("VmRSS"), 0, 0};
    try {
      Context ctx;
      const Model model = Model::load(ctx, folder / "model");
      figures[1] = memory("VmHWM");
      figures[2] = model.stack().weight_bytes();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    const bool written = write(result[1], figures, sizeof(figures)) == sizeof(figures);
    _exit(written ? 0 : 1);
  }
  int64_t figures[3] = {};
  ASSERT_EQ(read(result[0], figures, sizeof(figures)), static_cast<ssize_t>(sizeof(figures)));
  waitpid(child, nullptr, 0);
  const auto [before, peak, weights] = std::tuple(figures[0], figures[1], figures[2]);
  std::printf("weights %.1f MiB, peak of the process %.1f MiB (%.1f MiB before loading)\n",
              static_cast<double>(weights) / 0x1p20, static_cast<double>(peak) / 0x1p20,
              static_cast<double>(before) / 0x1p20);
  ASSERT_GT(weights, 400 << 20);
  EXPECT_LE(static_cast<double>(peak), 1.25 * static_cast<double>(weights));
}

}  // namespace
}  // namespace braid
