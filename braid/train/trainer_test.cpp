// A packed batch is its documents one by one; a run cut anywhere and resumed is the whole run, bit
// for bit; what is written can be read.

#include "braid/train/trainer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>

#include "braid/ops/cross_entropy/cross_entropy.h"
#include "braid/train/loader.h"
#include "tests/support/numeric.h"
#include "tests/support/small_stack.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::Folder;

// Mean loss of a batch; gradients are added to the optimiser's sinks, times the batch's tokens.
double loss_and_gradients(Context& ctx, Stack& stack, Optimizer& optimizer,
                          const TrainingBatch& batch) {
  Tape tape(optimizer.sinks());
  Context taped = ctx.with_tape(&tape);
  const Tensor logits = stack.forward(taped, batch.tokens, batch.batch);
  const Tensor loss = softmax_cross_entropy(taped, logits, batch.targets).loss;
  const auto n = static_cast<float>(batch.tokens.size());
  tape.backward(ctx, {loss}, {host_tensor<float>({n}, loss.shape())});
  return loss.f32()[0] * n;
}

std::vector<std::vector<double>> gradients(Optimizer& optimizer, const Stack& stack) {
  std::vector<std::vector<double>> all;
  for (const auto& [name, parameter] : stack.parameters()) {
    all.push_back(test::values(optimizer.sinks()->at(parameter->value.grad_id())));
  }
  return all;
}

TrainingBatch random_batch(const std::vector<int64_t>& lengths, uint64_t seed) {
  const Rng rng(seed);
  TrainingBatch batch;
  for (const int64_t length : lengths) batch.batch.add(length);
  for (int64_t i = 0; i < batch.batch.tokens(); ++i) {
    const auto at = static_cast<uint64_t>(2 * i);
    batch.tokens.push_back(static_cast<int32_t>(rng.below(at, test::kByteVocab)));
    batch.targets.push_back(static_cast<int32_t>(rng.below(at + 1, test::kByteVocab)));
  }
  return batch;
}

TrainingBatch sequence(const TrainingBatch& batch, int64_t s) {
  const auto begin = batch.batch.offsets[static_cast<size_t>(s)];
  const auto end = begin + batch.batch.length(s);
  return {.tokens = {batch.tokens.begin() + begin, batch.tokens.begin() + end},
          .targets = {batch.targets.begin() + begin, batch.targets.begin() + end},
          .batch = SequenceBatch::single(end - begin)};
}

TEST(Trainer, PackedDocumentsAreDocumentsOneByOne) {
  Context ctx({.threads = 2, .poison = true});
  const auto stack = test::make_stack(ctx, test::kHybrid);
  const TrainingBatch batch = random_batch({1, 33, 2, 20, 9}, 5);
  Optimizer packed(ctx, *stack, {}), separate(ctx, *stack, {});
  const double loss = loss_and_gradients(ctx, *stack, packed, batch);
  double sum = 0;
  for (int64_t s = 0; s < batch.batch.sequences(); ++s) {
    sum += loss_and_gradients(ctx, *stack, separate, sequence(batch, s));
  }
  EXPECT_NEAR(loss, sum, test::tolerance(DType::kF32, 65) * sum);
  const auto got = gradients(packed, *stack), want = gradients(separate, *stack);
  for (size_t i = 0; i < got.size(); ++i) {
    test::expect_close(got[i], want[i], test::tolerance(DType::kF32, 65),
                       stack->parameters()[i].name.c_str());
  }
}

TEST(Trainer, RecomputingChangesNothing) {
  Context ctx({.threads = 2, .poison = true});
  const auto plain = test::make_stack(ctx, test::kHybrid, 3, false);
  const auto again = test::make_stack(ctx, test::kHybrid, 3, true);
  const TrainingBatch batch = random_batch({17, 30}, 6);
  Optimizer a(ctx, *plain, {}), b(ctx, *again, {});
  EXPECT_EQ(loss_and_gradients(ctx, *plain, a, batch), loss_and_gradients(ctx, *again, b, batch));
  EXPECT_EQ(gradients(a, *plain), gradients(b, *again));
}

// The head leaves out the rows that are not predicted; loss and gradients are those of all rows.
TEST(Trainer, OnlyPredictedRowsReachTheHead) {
  Context ctx({.threads = 2, .poison = true});
  const auto stack = test::make_stack(ctx, test::kHybrid);
  TrainingBatch batch = random_batch({17, 30, 1}, 7);
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (i % 5 != 3) batch.targets[i] = -1;
  }
  Optimizer all(ctx, *stack, {}), few(ctx, *stack, {});
  const double want = loss_and_gradients(ctx, *stack, all, batch);
  Tape tape(few.sinks());
  Context taped = ctx.with_tape(&tape);
  const CrossEntropyResult scores = predict(taped, *stack, batch);
  EXPECT_EQ(scores.token_losses.count(), 9);
  EXPECT_EQ(scores.counted, 9);
  const auto n = static_cast<float>(batch.tokens.size());
  tape.backward(ctx, {scores.loss}, {host_tensor<float>({n}, scores.loss.shape())});
  EXPECT_NEAR(scores.loss.f32()[0] * n, want, test::tolerance(DType::kF32, 64) * want);
  const auto got = gradients(few, *stack), expected = gradients(all, *stack);
  for (size_t i = 0; i < got.size(); ++i) {
    test::expect_close(got[i], expected[i], test::tolerance(DType::kF32, 65),
                       stack->parameters()[i].name.c_str());
  }
}

TEST(Trainer, DecaysMatricesOnly) {
  Context ctx({.threads = 1});
  const auto stack = test::make_stack(ctx, test::kHybrid);
  int matrices = 0;
  for (const auto& [name, parameter] : stack->parameters()) {
    if (parameter->shape.rank() < 2 || name == "embedding.weight") {
      EXPECT_FALSE(parameter->decay) << name;
    }
    if (parameter->matrix && name != "embedding.weight") {
      EXPECT_TRUE(parameter->decay) << name;
      ++matrices;
    }
  }
  EXPECT_GT(matrices, 5);
}

TEST(Optimizer, LeavesFrozenParametersAsTheyAre) {
  constexpr const char* kSpec = "linear_attn:heads=4,feature=favor swiglu:hidden=96";
  Context ctx({.threads = 2, .poison = true});
  const auto stack = test::make_stack(ctx, kSpec), other = test::make_stack(ctx, kSpec, 4);
  Optimizer optimizer(ctx, *stack, {}), loaded(ctx, *other, {});
  std::vector<std::vector<double>> before;
  for (const auto& [name, p] : stack->parameters()) before.push_back(test::values(p->value));
  loss_and_gradients(ctx, *stack, optimizer, random_batch({20}, 5));
  optimizer.step(ctx, 0, 1e-2, 1.0);
  int frozen = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    const auto& [name, p] = stack->parameters()[i];
    EXPECT_EQ(test::values(p->value) == before[i], p->frozen) << name;
    frozen += p->frozen;
  }
  EXPECT_EQ(frozen, 1);

  const Folder folder("frozen");
  const auto file = folder.path() / "optimizer.safetensors";
  save_safetensors(file, optimizer.tensors(ctx));
  loaded.load(ctx, SafetensorsFile::open(file));
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(test::values(other->parameters()[i].parameter->value),
              test::values(stack->parameters()[i].parameter->value));
  }
}

// Two sublayers of experts with all that training alone does to them.
constexpr const char* kExperts =
    "mamba2:state=16,head=16 "
    "moe:8/2,hidden=32,router=sigmoid,select_bias=1,balance=0.01,seq_aux=0.01,jitter=0.1 "
    "attn:heads=4 moe:4/1,hidden=48,aux=0.01,z=0.001,capacity=1,dropout=0.1,shared=1";

// One run of 12 steps in a folder of its own, over the same text.
class SmallRun {
 public:
  SmallRun(const fs::path& folder, const fs::path& data, int threads,
           const char* spec = test::kHybrid, bool recompute = false)
      : ctx_({.threads = threads, .poison = true}),
        data_(test::make_dataset(ctx_, data, 3000)),
        stack_(test::make_stack(ctx_, spec, 3, recompute)),
        directory_(folder, {.dtype = DType::kF32, .keep = 2}),
        loader_(data_, {.length = 24, .batch = 2, .seed = 9}),
        set_(data_, {.length = 24, .max_tokens = 200}),
        trainer_(ctx_, *stack_, loader_, {&set_}, directory_,
                 {.accumulate = 2,
                  .schedule = {.peak = 1e-3, .warmup = 3, .steps = 12},
                  .save_every = 4,
                  .eval_every = 5}) {}

  Trainer& trainer() { return trainer_; }
  Stack& stack() { return *stack_; }
  RunDirectory& directory() { return directory_; }

 private:
  Context ctx_;
  Dataset data_;
  std::unique_ptr<Stack> stack_;
  RunDirectory directory_;
  Loader loader_;
  TextSet set_;
  Trainer trainer_;
};

// The lines of metrics.jsonl without what depends on the clock.
std::vector<std::string> metrics_of(const fs::path& folder) {
  std::istringstream file(read_text(folder / "metrics.jsonl"));
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    nlohmann::json entry = nlohmann::json::parse(line);
    for (const char* key : {"tokens_per_s", "gemm_share", "seconds"}) entry.erase(key);
    lines.push_back(entry.dump());
  }
  return lines;
}

TEST(Trainer, ResumedAnywhereIsTheWholeRun) {
  const Folder folder("braid-trainer");
  const fs::path whole = folder.path() / "whole";
  {
    SmallRun run(whole, folder.path(), 2);
    EXPECT_FALSE(run.trainer().resume());
    run.trainer().run();
  }
  for (const int64_t cut : {1, 4, 7, 11}) {
    const fs::path part = folder.path() / fmt::format("cut-{}", cut);
    SmallRun(part, folder.path(), 2).trainer().run(cut);  // abandoned between two checkpoints
    fs::create_directories(part / "checkpoints" / "step-9.partial");  // as a kill leaves it
    {
      SmallRun run(part, folder.path(), 1);
      EXPECT_EQ(run.trainer().resume(), cut >= 4);
      EXPECT_EQ(run.trainer().steps_done(), cut / 4 * 4);
      run.trainer().run();
    }
    EXPECT_EQ(read_text(part / "model.safetensors"), read_text(whole / "model.safetensors"));
    EXPECT_EQ(read_text(part / "checkpoints/step-12/tensors.safetensors"),
              read_text(whole / "checkpoints/step-12/tensors.safetensors"));
    EXPECT_EQ(metrics_of(part), metrics_of(whole));
    EXPECT_EQ(SmallRun(part, folder.path(), 1).directory().checkpoints().steps(),
              (std::vector<int64_t>{8, 12}));
    EXPECT_FALSE(fs::exists(part / "checkpoints" / "step-9.partial"));
  }
  EXPECT_EQ(metrics_of(whole).size(), 12u + 3u);
}

std::vector<double> bias_of(Stack& stack) {
  for (const auto& [name, p] : stack.parameters()) {
    if (name.ends_with("router.bias")) return test::values(p->value);
  }
  return {};
}

// Noise, loads and the bias go on as if nothing had happened.
TEST(Trainer, ExpertsAreResumedBitForBit) {
  const Folder folder("braid-experts");
  const fs::path whole = folder.path() / "whole", part = folder.path() / "part";
  {
    SmallRun run(whole, folder.path(), 2, kExperts);
    run.trainer().run();
    // Twelve steps of 0.01 at most, some of them taken.
    double moved = 0;
    for (const double b : bias_of(run.stack())) moved = std::max(moved, std::abs(b));
    EXPECT_GE(moved, 0.0099);
    EXPECT_LE(moved, 0.1201);
  }
  SmallRun(part, folder.path(), 2, kExperts).trainer().run(5);
  SmallRun run(part, folder.path(), 1, kExperts);
  EXPECT_TRUE(run.trainer().resume());
  EXPECT_EQ(run.trainer().steps_done(), 4);
  run.trainer().run();
  EXPECT_EQ(read_text(part / "model.safetensors"), read_text(whole / "model.safetensors"));
  EXPECT_EQ(metrics_of(part), metrics_of(whole));
}

TEST(Trainer, ExpertsAreCountedOnceWhereTheyAreRecomputed) {
  const Folder folder("braid-recompute");
  const fs::path plain = folder.path() / "plain", again = folder.path() / "again";
  SmallRun(plain, folder.path(), 2, kExperts, false).trainer().run(3);
  SmallRun(again, folder.path(), 2, kExperts, true).trainer().run(3);
  const std::vector<std::string> lines = metrics_of(plain);
  EXPECT_EQ(metrics_of(again), lines);
  ASSERT_EQ(lines.size(), 3u);
  for (const std::string& text : lines) {
    const nlohmann::json line = nlohmann::json::parse(text);
    ASSERT_EQ(line.at("load_peaks").size(), 2u);
    for (const double peak : line["load_peaks"]) {
      EXPECT_GT(peak, 1.0);
      EXPECT_LE(peak, 4.0);
    }
    EXPECT_GT(line.at("dropped").get<int64_t>(), 0);
    EXPECT_FALSE(line.contains("rerouted"));
  }
}

TEST(Trainer, TellsHowManyTokensAreRerouted) {
  const Folder folder("braid-reroute");
  const char* stack = "attn:heads=4 moe:8/2,hidden=32,reroute=0.01 attn:heads=4 moe:4/1,hidden=32";
  const fs::path plain = folder.path() / "plain", again = folder.path() / "again";
  SmallRun(plain, folder.path(), 2, stack, false).trainer().run(3);
  SmallRun(again, folder.path(), 2, stack, true).trainer().run(3);
  const std::vector<std::string> lines = metrics_of(plain);
  EXPECT_EQ(metrics_of(again), lines);
  ASSERT_EQ(lines.size(), 3u);
  for (const std::string& text : lines) {
    const double share = nlohmann::json::parse(text).at("rerouted");
    EXPECT_GT(share, 0.0);
    EXPECT_LT(share, 1.0);
  }
}

TEST(Trainer, RefusesToResumeAnotherRun) {
  const Folder folder("braid-other");
  SmallRun(folder.path() / "run", folder.path(), 1).trainer().run(4);
  Context ctx({.threads = 1});
  const Dataset data = test::make_dataset(ctx, folder.path(), 3000);
  const auto stack = test::make_stack(ctx, test::kHybrid);
  RunDirectory directory(folder.path() / "run", {});
  Loader loader(data, {.length = 24, .batch = 3, .seed = 9});
  Trainer trainer(ctx, *stack, loader, {}, directory, {.accumulate = 2});
  try {
    trainer.resume();
    FAIL() << "a run with another batch was resumed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("batch was 2, now it is 3"), std::string::npos)
        << error.what();
  }
}

TEST(Trainer, StopsWhenTheLossIsNotFinite) {
  const Folder folder("braid-nan");
  SmallRun run(folder.path() / "run", folder.path(), 1);
  run.stack().parameters().back().parameter->value.f32()[0] = NAN;
  EXPECT_THROW(run.trainer().run(), Error);
  EXPECT_FALSE(fs::exists(folder.path() / "run" / "model.safetensors"));
}

TEST(Evaluation, DoesNotDependOnTheBatch) {
  const Folder folder("braid-eval");
  Context ctx({.threads = 2, .poison = true});
  const Dataset data = test::make_dataset(ctx, folder.path(), 2000);
  const auto stack = test::make_stack(ctx, test::kHybrid);
  const TextSet set(data, {.length = 40});
  const Evaluation one = evaluate(ctx, *stack, set, {.batch_tokens = 1});
  const Evaluation many = evaluate(ctx, *stack, set, {.batch_tokens = 333});
  EXPECT_EQ(one.loss, many.loss);
  EXPECT_EQ(one.accuracy, many.accuracy);
  EXPECT_EQ(one.targets, data.predictions());
  EXPECT_EQ(static_cast<int64_t>(one.bytes), data.text_bytes());
  EXPECT_NEAR(one.loss, std::log(257.0), 0.5);
  // A document of n bytes has n + 1 predictions of `loss` nats.
  EXPECT_NEAR(one.bits_per_byte,
              one.loss / std::log(2.0) * static_cast<double>(one.targets) / one.bytes, 1e-9);
}

TEST(Metrics, AreCutToTheCheckpoint) {
  const Folder folder("braid-metrics");
  const fs::path path = folder.path() / "m.jsonl";
  uint64_t kept = 0;
  {
    MetricsLog log(path, 0);
    log.write({{"step", 1}});
    kept = log.sync();
    log.write({{"step", 2}});
  }
  { MetricsLog(path, kept).write({{"step", 3}}); }
  EXPECT_EQ(read_text(path), "{\"step\":1}\n{\"step\":3}\n");
  EXPECT_THROW(MetricsLog(path, 1000), Error);
  EXPECT_THROW(MetricsLog("/nowhere/m.jsonl", 0), Error);
}

// The system refuses to let files grow beyond this, as a full disk would.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST(Trainer, AFullDiskIsNamedAndCostsNoCheckpoint) {
  const Folder folder("braid-full");
  const fs::path out = folder.path() / "run";
  SmallRun run(out, folder.path(), 1);
  run.trainer().run(4);
  const std::string model = read_text(out / "model.safetensors");
  std::string message;
  {
    const FileSizeLimit limit(20000);
    try {
      run.trainer().run(8);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kIo);
      message = error.what();
    }
  }
  EXPECT_NE(message.find("tensors.safetensors"), std::string::npos) << message;
  EXPECT_EQ(run.directory().checkpoints().steps(), std::vector<int64_t>{4});
  EXPECT_EQ(read_text(out / "model.safetensors"), model);
  {
    const FileSizeLimit limit(10);
    MetricsLog log(folder.path() / "m.jsonl", 0);
    EXPECT_THROW(log.write({{"a number", 1}}), Error);
  }
}

}  // namespace
}  // namespace braid
