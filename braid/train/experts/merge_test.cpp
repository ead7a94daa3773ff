// Goal: an expert that was copied into another slot, its units in another order, is found after
// both have been trained on, and merged for next to nothing; nobody else is touched. In training
// its slot goes to half of the busiest expert. Method: small stacks trained for a moment, the copy
// planted by hand in the middle.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "braid/train/experts/merge_experts.h"
#include "braid/train/experts/recycle.h"
#include "braid/train/loader.h"
#include "braid/train/trainer.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"
#include "tests/support/small_stack.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::Folder;
using test::values;

constexpr int64_t kOriginal = 1, kCopy = 4;
constexpr const char* kStack =
    "swa:12,heads=2 moe:6/2,hidden=32,aux=0.01 swa:12,heads=2 moe:6/2,hidden=32,aux=0.01";

// Expert kOriginal of the layer, its units turned around, in slot kCopy; the same row of the router
// moved by `row_noise`.
void plant_copy(Context& ctx, const ExpertLayer& layer, float row_noise) {
  const ExpertMatrices original = host_expert(ctx, layer, kOriginal);
  const int64_t F = original.hidden(), D = original.width();
  float* in = layer.in[kCopy]->value.f32();
  float* out = layer.out[kCopy]->value.f32();
  for (int64_t row = 0; row < original.in.rows(); ++row) {
    const int64_t u = row % F, from = row - u + (F - 1 - u);
    std::copy_n(original.in.f32() + from * D, D, in + row * D);
  }
  for (int64_t d = 0; d < D; ++d) {
    std::reverse_copy(original.out.f32() + d * F, original.out.f32() + (d + 1) * F, out + d * F);
  }
  float* router = layer.router->value.f32();
  const Rng rng(77);
  for (int64_t d = 0; d < D; ++d) {
    router[kCopy * D + d] =
        router[kOriginal * D + d] + row_noise * rng.normal(static_cast<uint64_t>(d));
  }
  for (Parameter* p : {layer.in[kCopy], layer.out[kCopy], layer.router}) p->weight.repack(ctx);
}

// A run of `steps` in the folder; `middle` sees the stack after half of them.
class TinyRun {
 public:
  TinyRun(const fs::path& folder, const std::string& spec, int64_t steps,
          RecycleOptions recycle = {}, int threads = 2)
      : ctx({.threads = threads, .poison = true}),
        data(test::make_dataset(ctx, make(folder), 30000)),
        stack(test::make_stack(ctx, spec)),
        directory(folder / "run", {.dtype = DType::kF32, .keep = 2}),
        loader(data, {.length = 32, .batch = 8, .seed = 9}),
        set(data, {.length = 32, .max_tokens = 4000}),
        trainer(ctx, *stack, loader, {&set}, directory,
                {.schedule = {.peak = 3e-3, .floor = 3e-4, .warmup = 5, .steps = steps},
                 .recycle = recycle,
                 .save_every = steps / 4,
                 .eval_every = steps}) {}

  Context ctx;
  Dataset data;
  std::unique_ptr<Stack> stack;
  RunDirectory directory;
  Loader loader;
  TextSet set;
  Trainer trainer;

 private:
  static const fs::path& make(const fs::path& folder) {
    fs::create_directories(folder);
    return folder;
  }
};

std::vector<double> expert_values(Context& ctx, const ExpertLayer& layer, int64_t e) {
  const ExpertMatrices m = host_expert(ctx, layer, e);
  std::vector<double> all = values(m.in);
  const std::vector<double> out = values(m.out);
  all.insert(all.end(), out.begin(), out.end());
  return all;
}

TEST(MergeExperts, FindsThePlantedCopyAndNothingElse) {
  const Folder folder("braid-merge");
  TinyRun run(folder.path(), kStack, 80);
  run.trainer.run(66);
  plant_copy(run.ctx, expert_layers(*run.stack)[1], 0.02f);
  run.trainer.run();
  Context& ctx = run.ctx;
  const std::vector<ExpertLayer> before = expert_layers(*run.stack);

  const Checkpoint checkpoint = Checkpoint::open(run.directory.folder());
  EditedModel model(checkpoint);
  std::vector<MergeAttempt> attempts;
  std::vector<LayerSurvey> surveys;
  const MergeResult result = merge_experts(
      ctx, model, run.set, {.max_loss_increase = 0.001, .threshold = 0.6, .rows = 512},
      {.on_survey = [&](const Evaluation&, const auto& layers) { surveys = layers; },
       .on_attempt = [&](const MergeAttempt& attempt) { attempts.push_back(attempt); }});

  ASSERT_EQ(attempts.size(), 1u);
  EXPECT_EQ(attempts[0].sublayer, 3u);
  EXPECT_EQ(attempts[0].pair.i, kOriginal);
  EXPECT_EQ(attempts[0].pair.j, kCopy);
  EXPECT_GT(attempts[0].pair.error, 0.005);  // they have drifted
  EXPECT_GT(std::min(attempts[0].load_i, attempts[0].load_j), 0);
  EXPECT_TRUE(attempts[0].accepted);
  EXPECT_EQ(result.merges, 1);
  EXPECT_LT(result.loss_after, 1.001 * result.loss_before);
  ASSERT_EQ(surveys.size(), 2u);
  EXPECT_GT(surveys[0].least_error, 0.9);  // no two others are alike
  EXPECT_EQ(surveys[1].pairs, 1);

  // What was written is the model that was measured: one expert less there, the others as before.
  model.save(folder.path() / "out");
  const Checkpoint merged = Checkpoint::open(folder.path() / "out");
  EXPECT_EQ(to_string(merged.config().sublayers[3]), "moe:5/2,hidden=32,aux=0.01");
  EXPECT_EQ(to_string(merged.config().sublayers[1]), "moe:6/2,hidden=32,aux=0.01");
  Stack loaded(merged.config());
  loaded.load(ctx, merged);
  EXPECT_EQ(evaluate(ctx, loaded, run.set).loss, result.loss_after);
  const std::vector<ExpertLayer> after = expert_layers(loaded);
  for (int64_t e = 0; e < 6; ++e) {
    EXPECT_EQ(expert_values(ctx, after[0], e), expert_values(ctx, before[0], e));
    if (e == kOriginal || e == kCopy) continue;
    const int64_t to = e > kCopy ? e - 1 : e;
    EXPECT_EQ(expert_values(ctx, after[1], to), expert_values(ctx, before[1], e)) << e;
    EXPECT_EQ(values(host_values(ctx, *after[1].router).slice_rows(to, to + 1)),
              values(host_values(ctx, *before[1].router).slice_rows(e, e + 1)));
  }
}

TEST(MergeExperts, StopsAtTheLimitAndKeepsWhatAllTokensNeed) {
  const Folder folder("braid-merge-limit");
  TinyRun run(folder.path(),
              "swa:12,heads=2 moe:4/2,hidden=32,aux=0.01,select_bias=1,router=sigmoid", 40);
  run.trainer.run();
  const Checkpoint checkpoint = Checkpoint::open(run.directory.folder());
  {
    EditedModel model(checkpoint);
    std::vector<MergeAttempt> attempts;
    const MergeResult none = merge_experts(
        run.ctx, model, run.set, {.max_loss_increase = 0, .threshold = 2},
        {.on_attempt = [&](const MergeAttempt& attempt) { attempts.push_back(attempt); }});
    ASSERT_FALSE(attempts.empty());
    EXPECT_LE(none.loss_after, none.loss_before);
    EXPECT_EQ(std::ssize(attempts), none.merges + (none.merges < 2 ? 1 : 0));
  }
  EditedModel model(checkpoint);
  const MergeResult all =
      merge_experts(run.ctx, model, run.set, {.max_loss_increase = 1e3, .threshold = 2});
  EXPECT_EQ(all.merges, 2);  // down to the two that are chosen
  EXPECT_EQ(expert_layers(*model.build(run.ctx))[0].experts(), 2);
}

// Random tokens, for models without a text.
class RandomTokens final : public EvaluationSet {
 public:
  explicit RandomTokens(int64_t vocab) : vocab_(static_cast<uint64_t>(vocab)) {}
  std::string name() const override { return "random"; }
  int64_t sequences() const override { return 3; }
  int64_t length(int64_t) const override { return 20; }
  void append(int64_t sequence, TrainingBatch& batch) const override {
    const Rng rng(static_cast<uint64_t>(sequence));
    for (uint64_t i = 0; i < 20; ++i) {
      batch.tokens.push_back(static_cast<int32_t>(rng.below(i, vocab_)));
      batch.targets.push_back(static_cast<int32_t>(rng.below(i + 1, vocab_)));
    }
    batch.batch.add(20);
  }

 private:
  uint64_t vocab_;
};

// Published families, whose tensors have other names and lie together: what is saved is native and
// the model that was measured.
TEST(MergeExperts, TakesPublishedModels) {
  const Folder folder("braid-merge-families");
  for (const char* name : {"mixtral", "qwen3_moe", "jamba", "granitemoehybrid"}) {
    SCOPED_TRACE(name);
    Context ctx({.threads = 2, .poison = true});
    const Checkpoint checkpoint = Checkpoint::open(test::golden(name));
    const RandomTokens set(checkpoint.config().vocab);
    EditedModel model(checkpoint);
    const MergeResult result =
        merge_experts(ctx, model, set, {.max_loss_increase = 1e3, .threshold = 2, .max_merges = 2});
    EXPECT_EQ(result.merges, 2);
    model.save(folder.path() / name);
    const Checkpoint saved = Checkpoint::open(folder.path() / name);
    Stack loaded(saved.config());
    loaded.load(ctx, saved);
    EXPECT_EQ(evaluate(ctx, loaded, set).loss, result.loss_after);
    int64_t before = 0, after = 0;
    for (const ExpertLayer& layer : expert_layers(Stack(checkpoint.config()))) {
      before += layer.experts();
    }
    for (const ExpertLayer& layer : expert_layers(loaded)) after += layer.experts();
    EXPECT_EQ(after, before - 2);
  }
}

TEST(MergeExperts, RefusesWhatMakesNoSense) {
  const auto refused = [](const MergeExpertsOptions& options) {
    EXPECT_THROW(check_options(options), Error);
  };
  check_options({});
  refused({.max_loss_increase = -0.1});
  refused({.max_loss_increase = NAN});
  refused({.max_loss_increase = INFINITY});
  refused({.threshold = NAN});
  refused({.threshold = 2.1});
  refused({.max_merges = -1});
  refused({.rows = 0});
  ModelConfig config;
  config.vocab = 20;
  config.width = 32;
  config.sublayers = parse_stack("swa:8,heads=2 swiglu");
  EXPECT_THROW(check_mergeable(config), Error);
  config.sublayers = parse_stack("swa:8,heads=2 moe:8/2,groups=4,keep=2");
  EXPECT_THROW(check_mergeable(config), Error);
  config.sublayers = parse_stack("swa:8,heads=2 moe:8/2,reroute=0.1");
  test::expect_refused([&] { check_mergeable(config); }, "sublayer 1 is moe with reroute");
  config.sublayers = parse_stack("swa:8,heads=2 moe:8/2");
  check_mergeable(config);
}

double loss_of(Context& ctx, const Stack& stack, const TrainingBatch& batch) {
  return ctx.to_host(predict(ctx, stack, batch).loss).f32()[0];
}

// The planted pair becomes one, its slot a half of another, and the loss hardly moves.
TEST(RecycleExperts, TakesTheSlotOfTheCopy) {
  for (const char* spec :
       {"swa:12,heads=2 moe:6/1,hidden=32,aux=0.01,router=selected",
        "swa:12,heads=2 moe:6/1,hidden=32,aux=0.01", "swa:12,heads=2 moe:6/2,hidden=32,aux=0.01",
        "swa:12,heads=2 moe:6/2,hidden=32,router=sigmoid,select_bias=1"}) {
    SCOPED_TRACE(spec);
    const Folder folder("braid-recycle");
    TinyRun run(folder.path(), spec, 60);
    run.trainer.run(40);
    Context& ctx = run.ctx;
    const ExpertLayer layer = expert_layers(*run.stack)[0];
    plant_copy(ctx, layer, 0.02f);
    Optimizer optimizer(ctx, *run.stack, {});
    const TrainingBatch batch = run.loader.batch(3);
    const double before = loss_of(ctx, *run.stack, batch);
    std::vector<std::vector<double>> experts;
    for (int64_t e = 0; e < 6; ++e) experts.push_back(expert_values(ctx, layer, e));
    // Moments that tell whose they are.
    for (size_t e = 0; e < 6; ++e) {
      const Tensor m = optimizer.moments(*layer.in[e]).m;
      std::fill_n(m.f32(), m.count(), static_cast<float>(e + 1));
    }
    const std::vector<RecycledExpert> done =
        recycle_experts(ctx, *run.stack, optimizer, batch, {.threshold = 0.1}, Rng(5));
    ASSERT_EQ(done.size(), 1u);
    EXPECT_EQ(done[0].pair.i, kOriginal);
    EXPECT_EQ(done[0].pair.j, kCopy);
    const double after = loss_of(ctx, *run.stack, batch);
    EXPECT_NEAR(after, before, 0.01 * before);
    const int64_t half = done[0].split;
    for (int64_t e = 0; e < 6; ++e) {
      if (e == kOriginal || e == kCopy || e == half) continue;
      EXPECT_EQ(expert_values(ctx, layer, e), experts[static_cast<size_t>(e)]);
    }
    // The halves' mean is the whole.
    const auto one = expert_values(ctx, layer, half), other = expert_values(ctx, layer, kCopy);
    std::vector<double> mean;
    for (size_t i = 0; i < one.size(); ++i) mean.push_back((one[i] + other[i]) / 2);
    test::expect_close(mean, experts[static_cast<size_t>(half)], 1e-6, "mean of the halves");
    EXPECT_NE(one, other);
    EXPECT_EQ(optimizer.moments(*layer.in[kCopy]).m.f32()[0], static_cast<float>(half + 1));
    const float moment = optimizer.moments(*layer.in[kOriginal]).m.f32()[0];
    EXPECT_GE(moment, kOriginal + 1);
    EXPECT_LE(moment, kCopy + 1);
  }
}

// Merges of any pair at every third step, in a run that is cut and goes on with other threads.
TEST(RecycleExperts, ResumedAnywhereIsTheWholeRun) {
  const Folder folder("braid-recycle-resume");
  const RecycleOptions always{.every = 3, .threshold = 2, .rows = 100};
  TinyRun whole(folder.path() / "a", kStack, 16, always);
  int64_t recycled = 0;
  whole.trainer.run({.on_recycled = [&](int64_t, const RecycledExpert&) { ++recycled; }});
  EXPECT_GE(recycled, 5);
  TinyRun(folder.path() / "b", kStack, 16, always, 1).trainer.run(11);
  TinyRun rest(folder.path() / "b", kStack, 16, always, 2);
  ASSERT_TRUE(rest.trainer.resume());
  EXPECT_EQ(rest.trainer.steps_done(), 8);
  rest.trainer.run();
  EXPECT_EQ(read_text(folder.path() / "a/run/model.safetensors"),
            read_text(folder.path() / "b/run/model.safetensors"));
  const auto tensors = [&](const char* run) {
    return read_text(folder.path() / run / "run/checkpoints/step-16/tensors.safetensors");
  };
  EXPECT_EQ(tensors("a"), tensors("b"));
  TinyRun never(folder.path() / "c", kStack, 16);
  never.trainer.run();
  EXPECT_NE(read_text(folder.path() / "a/run/model.safetensors"),
            read_text(folder.path() / "c/run/model.safetensors"));
}

}  // namespace
}  // namespace braid
