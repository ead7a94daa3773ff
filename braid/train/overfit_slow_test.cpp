// Every sublayer of the registry learns: two layers of it take 4 KB of text down to a loss that
// only memory explains.

#include <gtest/gtest.h>

#include "braid/nn/sublayer.h"
#include "braid/train/loader.h"
#include "braid/train/trainer.h"
#include "tests/support/small_stack.h"

namespace braid {
namespace {

class Overfit : public ::testing::TestWithParam<SublayerEntry> {};

// What has neither a gate nor a sharp sense of position takes longer to learn by heart.
int64_t steps_of(std::string_view name) {
  if (name == "linear_attn") return 6000;  // sees its past without order
  if (name.starts_with("ttt")) return 2000;
  const bool slow = name == "s4d" || name == "shared_block" || name == "short_conv";
  return slow ? 2000 : 500;
}

TEST_P(Overfit, FourKilobytes) {
  const SublayerEntry& entry = GetParam();
  if (!entry.traits.causal) GTEST_SKIP() << "does not predict";
  const test::Folder folder("braid-overfit-" + std::string(entry.name));
  Context ctx({.threads = 2});
  const Dataset data = test::make_dataset(ctx, folder.path(), 4096);
  // An ffn sees one position only, so it is given a mixer to learn with.
  std::string mixer(entry.traits.mixer ? entry.example : "swa:24,heads=4,kv=2");
  // It sees nothing of its own chunk, and stands beside a window.
  if (entry.name == "lact") mixer += "|swa:24,heads=4,kv=2";
  const std::string ffn(entry.traits.mixer ? "swiglu:hidden=192" : entry.example);
  const auto stack = test::make_stack(ctx, "(" + mixer + " " + ffn + ")x2");
  const int64_t steps = steps_of(entry.name);
  RunDirectory directory(folder.path() / "run", {.dtype = DType::kF32});
  Loader loader(data, {.length = 256, .batch = 4, .seed = 1});
  Trainer trainer(ctx, *stack, loader, {}, directory,
                  {.schedule = {.peak = 4e-3, .floor = 1e-4, .warmup = 20, .steps = steps},
                   .optimizer = {.weight_decay = 0},
                   .save_every = steps});
  double loss = 0;
  trainer.run({.on_step = [&](const StepReport& report) { loss = report.loss; }});
  EXPECT_LT(loss, 0.1);
}

INSTANTIATE_TEST_SUITE_P(Registry, Overfit, ::testing::ValuesIn(sublayer_registry()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace braid
