// Goal: a stack whose experts are spread over ranks gives the bits of the stack that has them all,
// for any number of ranks, idle ones among them, and while experts move. Method: ranks are threads,
// router choices are skewed by reading few different tokens.
#include "braid/model/expert_parallel.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "braid/core/rng.h"
#include "braid/model/stack_spec.h"

namespace braid {
namespace {

constexpr int64_t kVocab = 96, kWidth = 32, kExperts = 8, kHidden = 16, kLayers = 2;
constexpr uint64_t kSeed = 3;
constexpr const char* kSpec = "(swa:8,heads=2 moe:8/2,hidden=16)x2";

ModelConfig config_of(const std::string& spec) {
  ModelConfig config;
  config.vocab = kVocab;
  config.width = kWidth;
  config.tied = true;
  config.sublayers = parse_stack(spec);
  return config;
}

// Sequence `index`: tokens of two ids, so that some experts are chosen far more often.
std::vector<int32_t> sequence(int64_t index) {
  const Rng rng(17, static_cast<uint64_t>(index));
  std::vector<int32_t> tokens(static_cast<size_t>(5 + index % 37));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(rng.below(i, 2));
  return tokens;
}

struct Run {
  std::string spec = kSpec;
  DType dtype = DType::kF32;
  int64_t steps = 3;
  ExpertParallelOptions options = {};
  bool busy_only_first = false;  // the other ranks have no sequences
};

std::vector<float> forward(Context& ctx, const Stack& stack, int64_t index, ExpertHost* host) {
  const std::vector<int32_t> tokens = sequence(index);
  const Tensor y =
      stack.forward(ctx, tokens, SequenceBatch::single(std::ssize(tokens)), {.expert_host = host});
  return {y.f32(), y.f32() + y.count()};
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want,
                      int64_t index) {
  check(got.size() == want.size() &&
            std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0,
        "sequence {}: other bits than alone", index);
}

// Every rank compares its own sequences with those of a whole stack; the report of the last step.
ExpertReport run(int ranks, const Run& run) {
  const ModelConfig config = config_of(run.spec);
  Context whole_ctx({.threads = 1});
  Stack whole(config, {.matrix_dtype = run.dtype});
  whole.initialize(whole_ctx, Rng(kSeed));
  std::vector<std::vector<float>> want;
  for (int64_t i = 0; i < run.steps * ranks; ++i) {
    want.push_back(forward(whole_ctx, whole, i, nullptr));
  }
  ExpertReport report;
  run_on_threads(ranks, {}, [&](Transport& transport) {
    Context ctx({.threads = 1, .poison = true});
    Stack stack(config, {.matrix_dtype = run.dtype});
    ExpertParallel host(transport, stack, run.options);
    stack.initialize(ctx, Rng(kSeed), [&](std::string_view name) { return host.reads(name); });
    for (int64_t step = 0; step < run.steps; ++step) {
      const int64_t index = step * ranks + transport.rank();
      if (run.busy_only_first && transport.rank() > 0) {
        host.idle_pass(ctx);
      } else {
        expect_same_bits(forward(ctx, stack, index, &host), want[static_cast<size_t>(index)],
                         index);
      }
      host.end_step(ctx);
    }
    const ExpertReport mine = host.report();
    if (transport.rank() == 0) report = mine;
  });
  return report;
}

int64_t bytes_of_experts(int64_t experts, DType dtype = DType::kF32) {
  return experts * kLayers * 3 * kWidth * kHidden * static_cast<int64_t>(size_of(dtype));
}

TEST(ExpertParallel, HasTheBitsOfOneProcess) {
  for (const int ranks : {1, 2, 3, 4, 11}) {
    const ExpertReport report = run(ranks, {});
    ASSERT_EQ(std::ssize(report.resident_bytes), ranks);
    EXPECT_EQ(report.all_bytes, bytes_of_experts(kExperts));
    const int64_t slots = least_slots(kExperts, ranks);
    for (const int64_t bytes : report.resident_bytes) EXPECT_EQ(bytes, bytes_of_experts(slots));
  }
}

TEST(ExpertParallel, HasTheBitsInBfloat16AndWithEveryActivation) {
  const ExpertReport report = run(3, {.dtype = DType::kBF16, .options = {.replan_every = 2}});
  EXPECT_EQ(report.all_bytes, bytes_of_experts(kExperts, DType::kBF16));
  for (const char* act : {"relu2", "relu", "gelu", "silu"}) {
    run(2, {.spec = std::string("moe:8/3,hidden=16,act=") + act, .busy_only_first = true});
  }
  run(2, {.spec = "moe:8/2,hidden=16,shared=1,router=sigmoid,select_bias=1"});
}

TEST(ExpertParallel, RanksWithoutSequencesServe) {
  run(4, {.options = {.slots = 3, .replan_every = 1}, .busy_only_first = true});
}

TEST(ExpertParallel, EvensOutWhileExpertsTravel) {
  // One expert is under way at a time, so that many steps see a migration that is not over.
  const ExpertReport report =
      run(4, {.steps = 60, .options = {.slots = 3, .replan_every = 8, .move_bytes = 1}});
  EXPECT_GT(report.moved_experts, 4);
  for (const ExpertReport::Layer& layer : report.layers) {
    EXPECT_GE(layer.switches, 1);
    EXPECT_GT(layer.before, 1.3);
    EXPECT_LT(layer.after, 1 + (layer.before - 1) / 2);
  }
  // At most as many as there are slots; copies of one expert in a rank lie there once.
  for (const int64_t bytes : report.resident_bytes) EXPECT_LE(bytes, bytes_of_experts(3));
}

TEST(ExpertParallel, WithoutPlansNothingMoves) {
  const ExpertReport report = run(4, {.steps = 6});
  EXPECT_EQ(report.moved_experts, 0);
  EXPECT_EQ(report.steps, 6);
  for (const ExpertReport::Layer& layer : report.layers) {
    EXPECT_EQ(layer.switches, 0);
    EXPECT_EQ(layer.before, layer.after);
  }
}

TEST(ExpertParallel, StatesCarryAcrossSteps) {
  const ModelConfig config = config_of(kSpec);
  const std::vector<int32_t> tokens = sequence(6);
  Context whole_ctx({.threads = 1});
  Stack whole(config, {.matrix_dtype = DType::kF32});
  whole.initialize(whole_ctx, Rng(kSeed));
  const std::vector<float> want = forward(whole_ctx, whole, 6, nullptr);
  run_on_threads(3, {}, [&](Transport& transport) {
    Context ctx({.threads = 1});
    Stack stack(config, {.matrix_dtype = DType::kF32});
    ExpertParallel host(transport, stack, {.replan_every = 2, .move_bytes = 1});
    stack.initialize(ctx, Rng(kSeed), [&](std::string_view name) { return host.reads(name); });
    State state = stack.make_state(ctx);
    State* states[] = {&state};
    std::vector<float> got;
    for (const int32_t token : tokens) {
      const Tensor y =
          stack.forward(ctx, std::span(&token, 1), SequenceBatch::single(1, state.position()),
                        {.states = states, .expert_host = &host});
      got.insert(got.end(), y.f32(), y.f32() + y.count());
      host.end_step(ctx);
    }
    expect_same_bits(got, want, 6);
  });
}

TEST(ExpertParallel, RefusesWhatItCannotDo) {
  const auto on_two = [](const std::string& spec, const ExpertParallelOptions& options) {
    run_on_threads(2, {}, [&](Transport& transport) {
      const Stack stack(config_of(spec));
      ExpertParallel(transport, stack, options);
    });
  };
  EXPECT_THROW(on_two("swiglu", {}), Error);         // no experts
  EXPECT_THROW(on_two(kSpec, {.slots = 3}), Error);  // 2 * 3 slots for 8 experts
  EXPECT_THROW(on_two(kSpec, {.past = 1.5}), Error);
  EXPECT_NO_THROW(on_two(kSpec, {.slots = 4}));
  // Gradients.
  EXPECT_THROW(run_on_threads(1, {},
                              [&](Transport& transport) {
                                Context ctx({.threads = 1});
                                Stack stack(config_of(kSpec), {.trainable = true});
                                stack.initialize(ctx, Rng(1));
                                ExpertParallel host(transport, stack, {});
                                Tape tape;
                                Context taped = ctx.with_tape(&tape);
                                forward(taped, stack, 0, &host);
                              }),
               Error);
}

TEST(ExpertParallel, ARankThatFailsEndsTheRun) {
  try {
    run_on_threads(3, {}, [&](Transport& transport) {
      Context ctx({.threads = 1});
      Stack stack(config_of(kSpec), {.matrix_dtype = DType::kF32});
      ExpertParallel host(transport, stack, {});
      stack.initialize(ctx, Rng(kSeed), [&](std::string_view name) { return host.reads(name); });
      for (int64_t step = 0;; ++step) {
        check(transport.rank() != 1 || step < 2, ErrorKind::kIo, "the disk is gone");
        forward(ctx, stack, step, &host);
        host.end_step(ctx);
      }
    });
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the disk is gone");
  }
}

}  // namespace
}  // namespace braid
