// What the laws over the registry do not ask of hyena: limits, refusals, and filters that are kept
// between calls only as long as their parameters stand.

#include <gtest/gtest.h>

#include "braid/nn/sublayer.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

std::unique_ptr<Sublayer> make_hyena(std::vector<SpecArg> args) {
  args.push_back({.key = "filter_order", .value = "8"});
  return make_sublayer({.name = "hyena", .args = std::move(args)}, {.width = 24});
}

void initialize(Context& ctx, Sublayer& layer, uint64_t seed, bool trainable) {
  uint64_t id = 0;
  for (Parameter* p : layer.parameters()) {
    p->value = Tensor();
    if (trainable) p->value.set_grad_id(id + 1);
    initialize_parameter(ctx, *p, Rng(seed).fork(id++), {.trainable = trainable});
  }
}

Tensor run(Context& ctx, const Sublayer& layer, const Tensor& x) {
  const SequenceBatch batch = SequenceBatch::single(x.rows());
  Stream stream(batch);
  return layer.forward(ctx, x, stream, nullptr);
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Hyena, RefusesPositionsWithoutTaps) {
  Context ctx;
  const auto layer = make_hyena({{.key = "max", .value = "70"}});
  initialize(ctx, *layer, 1, false);
  EXPECT_EQ(refusal([&] { run(ctx, *layer, test::randn({70, 24}, 1)); }), "");
  EXPECT_EQ(refusal([&] {
              run(ctx, *layer, test::randn({71, 24}, 1));
            }),
            "hyena: a sequence of 71 tokens, want at most the 70 that max gives taps for");
  State state(ctx.shared_api(), {layer->state_spec()});
  State* states[] = {&state};
  const auto read = [&](int64_t n) {
    const SequenceBatch batch = SequenceBatch::single(n, state.position());
    Stream stream(batch);
    const LayerState view(states, 0, batch);
    layer->forward(ctx, test::randn({n, 24}, 2), stream, &view);
    state.advance(n);
  };
  EXPECT_EQ(refusal([&] { read(69), read(1); }), "");
  EXPECT_NE(refusal([&] { read(1); }), "");
}

TEST(Hyena, RefusesImpossibleOptions) {
  const SpecArg impossible[] = {{.key = "order", .value = "5"},
                                {.key = "emb", .value = "4"},
                                {.key = "max", .value = "1"},
                                {.key = "short", .value = "1"}};
  for (const SpecArg& arg : impossible) {
    EXPECT_NE(refusal([&] { make_hyena({arg}); }), "") << arg.key;
  }
}

TEST(Hyena, KeptFiltersAreThoseOfTheParameters) {
  Context ctx({.threads = 2, .poison = true});
  const Tensor x = test::randn({150, 24}, 3);
  for (const char* order : {"2", "3"}) {
    const std::vector<SpecArg> args{{.key = "order", .value = order},
                                    {.key = "max", .value = "200"},
                                    {.key = "shift", .value = "0.1"}};
    const auto kept = make_hyena(args), made = make_hyena(args);
    for (const uint64_t seed : {1, 2}) {
      initialize(ctx, *kept, seed, false);
      initialize(ctx, *made, seed, true);
      const Tensor want = run(ctx, *made, x);
      EXPECT_TRUE(test::same_bits(run(ctx, *kept, x), want)) << "the first call, seed " << seed;
      EXPECT_TRUE(test::same_bits(run(ctx, *kept, x), want)) << "the second, seed " << seed;
    }
  }
}

}  // namespace
}  // namespace braid
