// Goal: a stack whose sublayers feed each other and share weights, or whose residual is the normed
// state, trains, saves and runs as one function. Method: its gradients against central differences
// and against recomputation; a native checkpoint of it read back; what it must refuse.
#include "braid/model/stack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>

#include "braid/model/checkpoint.h"
#include "braid/model/json.h"
#include "braid/model/stack_spec.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/embedding/embedding.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using namespace test;

constexpr const char* kMamba = "mamba2:state=8,head=8,norm=0,scales=0.5/0.6/0.7/0.8/1.3 ";
constexpr int64_t kWidth = 32, kVocab = 40;

std::string shared_block(int id) {
  return fmt::format("shared_block:share={},heads=2,hidden=24,rank=4,attn_rank=3,in_scale=1.1 ",
                     id);
}

// Three places of two blocks: A B A.
std::string shared_stack() {
  return kMamba + shared_block(0) + kMamba + shared_block(1) + kMamba + shared_block(0) +
         "attn:heads=2,in_scale=1.1,out_scale=0.9|" + kMamba + "swiglu:hidden=24,gate_scale=1.2";
}

// Normed residuals, of one branch and of two, beside a scaled one of the usual kind.
std::string normed_stack() {
  return "mlp:hidden=24,act=silu,residual=normed,residual_scale=1.2,out_scale=0.7 "
         "attn:heads=2,residual=normed,residual_scale=-0.9|"
         "swa:5,heads=2,residual=normed,residual_scale=-0.9 swiglu:hidden=24,residual_scale=0.8";
}

ModelConfig config_of(const std::string& stack) {
  ModelConfig config;
  config.vocab = kVocab;
  config.width = kWidth;
  config.embedding_scale = 50;  // rows of about unit size, as in a trained model
  config.sublayers = parse_stack(stack);
  return config;
}

std::unique_ptr<Stack> make_stack(Context& ctx, bool recompute = false,
                                  const std::string& spec = shared_stack()) {
  auto stack = std::make_unique<Stack>(
      config_of(spec),
      StackOptions{.trainable = true, .matrix_dtype = DType::kF32, .recompute = recompute});
  stack->initialize(ctx, Rng(3));
  return stack;
}

struct Batch {
  SequenceBatch sequences;
  std::vector<int32_t> tokens;
  Tensor dlogits;  // (N, V)
};

Batch make_batch() {
  Batch batch;
  for (const int64_t n : {9, 1, 13}) batch.sequences.add(n);
  const int64_t N = batch.sequences.tokens();
  for (int64_t i = 0; i < N; ++i) batch.tokens.push_back(static_cast<int32_t>(i * 7 % kVocab));
  batch.dlogits = randn({N, kVocab}, 4);
  return batch;
}

Tape::Sinks gradients(Context& ctx, const Stack& stack, const Batch& batch) {
  Tape::Sinks sinks;
  for (const auto& [name, parameter] : stack.parameters()) {
    sinks[parameter->value.grad_id()] = ctx.zeros(parameter->shape);
  }
  Tape tape(&sinks);
  Context taped = ctx.with_tape(&tape);
  const Tensor logits = stack.forward(taped, batch.tokens, batch.sequences);
  tape.backward(ctx, {logits}, {batch.dlogits});
  return sinks;
}

// The slope of <logits, dlogits> along `direction` of a parameter, from differences of three steps
// extrapolated to none (Romberg's rule): the steps can be large, which keeps rounding small.
constexpr double kStep = 0x1p-8;

double slope(Context& ctx, Stack& stack, const Batch& batch, Parameter& parameter,
             const std::vector<double>& direction) {
  float* data = parameter.value.f32();
  const std::vector<float> before(data, data + parameter.value.count());
  const auto loss = [&](double h) {
    for (size_t i = 0; i < before.size(); ++i) {
      data[i] = static_cast<float>(before[i] + h * direction[i]);
    }
    if (parameter.matrix) parameter.weight.repack(ctx);
    return dot(values(stack.forward(ctx, batch.tokens, batch.sequences)), values(batch.dlogits));
  };
  const auto difference = [&](double h) { return (loss(h) - loss(-h)) / (2 * h); };
  const double coarse = difference(4 * kStep), middle = difference(2 * kStep);
  const double fine = difference(kStep);
  loss(0);
  const double first = (4 * middle - coarse) / 3, second = (4 * fine - middle) / 3;
  return (16 * second - first) / 15;
}

void gradients_match_differences(const std::string& spec) {
  Context ctx;
  const auto stack = make_stack(ctx, false, spec);
  const Batch batch = make_batch();
  Tape::Sinks sinks = gradients(ctx, *stack, batch);
  // A logit is rounded by about 2^-24 of its size at each of a row's sublayers, independently.
  const auto logits = values(stack->forward(ctx, batch.tokens, batch.sequences));
  const auto dlogits = values(batch.dlogits);
  double squares = 0;
  for (size_t i = 0; i < logits.size(); ++i) squares += std::pow(logits[i] * dlogits[i], 2);
  const double noise =
      0x1p-24 * std::sqrt(squares * static_cast<double>(stack->sublayers().size()));
  for (const auto& [name, parameter] : stack->parameters()) {
    SCOPED_TRACE(name);
    const auto gradient = values(sinks[parameter->value.grad_id()]);
    std::vector<double> direction = values(randn(parameter->shape, 5));
    // A step is a part of the parameter's own size.
    double size = 0, want = 0, norm = 0;
    for (const double v : values(parameter->value)) size += v * v;
    size = std::sqrt(size / static_cast<double>(direction.size()));
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] *= size;
      want += gradient[i] * direction[i];
      norm += std::pow(gradient[i] * size, 2);
    }
    EXPECT_GT(norm, 0);
    EXPECT_NEAR(slope(ctx, *stack, batch, *parameter, direction), want,
                5e-3 * std::sqrt(norm) + noise / kStep);
  }
}

TEST(SharedBlocks, GradientsMatchDifferences) { gradients_match_differences(shared_stack()); }

void recompute_changes_no_gradient(const std::string& spec) {
  Context ctx;
  const auto kept = make_stack(ctx, false, spec), again = make_stack(ctx, true, spec);
  const Batch batch = make_batch();
  Tape::Sinks a = gradients(ctx, *kept, batch), b = gradients(ctx, *again, batch);
  for (size_t i = 0; i < kept->parameters().size(); ++i) {
    const auto id = kept->parameters()[i].parameter->value.grad_id();
    const double length = static_cast<double>(batch.sequences.tokens());
    EXPECT_LE(max_error(values(b[id]), values(a[id])),
              tolerance(DType::kF32, static_cast<int64_t>(length)))
        << kept->parameters()[i].name;
  }
}

TEST(SharedBlocks, RecomputeChangesNoGradient) { recompute_changes_no_gradient(shared_stack()); }

TEST(Residuals, GradientsMatchDifferences) { gradients_match_differences(normed_stack()); }
TEST(Residuals, RecomputeChangesNoGradient) { recompute_changes_no_gradient(normed_stack()); }

TEST(Residuals, AreWhatTheOptionsSay) {
  Context ctx;
  const Batch batch = make_batch();
  const auto stack = [&](const std::string& options) {
    return make_stack(ctx, false, "mlp:hidden=24" + options + " mlp:hidden=24");
  };
  const auto rows = [&](const Stack& of, bool normed, float a) {
    Stream stream(batch.sequences);
    Tensor h = scale(ctx, embedding(ctx, batch.tokens, of.parameters()[0].parameter->weight), 50);
    for (const Stack::Residual& sublayer : of.sublayers()) {
      const Tensor x = sublayer.norm.forward(ctx, h);
      const Tensor y = sublayer.branches[0]->forward(ctx, x, stream, nullptr);
      h = add(ctx, &sublayer == &of.sublayers()[0] ? scale(ctx, normed ? x : h, a) : h, y);
    }
    const float eps = static_cast<float>(of.config().norm_eps);
    const Tensor last = rms_norm(ctx, h, of.parameters()[7].parameter->value, eps);
    return linear(ctx, last, of.parameters()[8].parameter->weight);
  };
  const auto forward = [&](const Stack& of) {
    return of.forward(ctx, batch.tokens, batch.sequences);
  };
  for (const bool normed : {false, true}) {
    for (const float a : {1.0f, 1.25f}) {
      const auto of =
          stack(fmt::format("{},residual_scale={}", normed ? ",residual=normed" : "", a));
      EXPECT_TRUE(same_bits(forward(*of), rows(*of, normed, a))) << normed << " " << a;
      EXPECT_EQ(same_bits(forward(*of), forward(*stack(""))), !normed && a == 1);
    }
  }
}

TEST(SharedBlocks, AreOwnedOnceAndKeepAStateAPlace) {
  Context ctx;
  const auto stack = make_stack(ctx);
  std::vector<std::string> of_blocks, of_places;
  for (const auto& [name, parameter] : stack->parameters()) {
    if (name.find("shared_block.gate_up") != std::string::npos) of_blocks.push_back(name);
    if (name.find("shared_block.linear") != std::string::npos) of_places.push_back(name);
  }
  EXPECT_EQ(of_blocks, (std::vector<std::string>{"sublayers.1.shared_block.gate_up.weight",
                                                 "sublayers.3.shared_block.gate_up.weight"}));
  EXPECT_EQ(of_places, (std::vector<std::string>{"sublayers.1.shared_block.linear.weight",
                                                 "sublayers.3.shared_block.linear.weight",
                                                 "sublayers.5.shared_block.linear.weight"}));
  const auto specs = stack->state_specs();
  for (const size_t place : {1, 3, 5}) EXPECT_EQ(specs[place].size(), 2u) << place;
}

TEST(SharedBlocks, SurviveANativeCheckpoint) {
  Context ctx;
  const auto stack = make_stack(ctx);
  std::vector<NamedTensor> tensors;
  for (const auto& [name, parameter] : stack->parameters()) {
    tensors.emplace_back(name, parameter->value);
  }
  const TemporaryFolder folder;
  save_checkpoint(folder / "out", {.config = &stack->config(), .tensors = tensors});
  const Checkpoint saved = Checkpoint::open(folder / "out");
  Stack loaded(saved.config());
  loaded.load(ctx, saved);
  const Batch batch = make_batch();
  EXPECT_TRUE(same_bits(loaded.forward(ctx, batch.tokens, batch.sequences),
                        stack->forward(ctx, batch.tokens, batch.sequences)));
}

void refused(const std::string& spec, const char* want) {
  SCOPED_TRACE(spec);
  expect_refused([&] { Stack stack(config_of(spec)); }, want);
}

TEST(Residuals, RefusesWhatDoesNotFit) {
  refused("attn:heads=2|mlp:residual=normed",
          "stack: column 14: mlp has another residual or residual_scale than the branch before it, "
          "want the same");
  refused("attn:heads=2,residual_scale=2|mlp:residual_scale=3",
          "stack: column 31: mlp has another");
  refused("shared_block:residual=normed swiglu",
          "stack: column 1: shared_block is added to nothing, want no residual or residual_scale");
  refused("mlp:residual=x", "residual is \"x\", want one of stream, normed");
  refused("mlp:residual_scale=inf", "residual_scale is \"inf\", want a number");
}

TEST(SharedBlocks, RefusesWhatDoesNotFit) {
  refused("mamba2:head=8 shared_block",
          "stack: column 15: shared_block comes last, want a sublayer after it");
  refused("shared_block|swiglu swiglu",
          "stack: column 1: shared_block stands beside others, want it alone");
  refused("shared_block:share=0 swiglu shared_block:share=0,hidden=24 swiglu",
          "shared_block: column 42: share is \"0\", want the options of the first sublayer");
  refused("shared_block:share=-1 swiglu", "share is \"-1\", want an integer from 0");
  refused("shared_block:heads=3 swiglu", "heads is \"3\", want a divisor of the width");
  refused("swiglu:out_scale=x", "out_scale is \"x\", want a number");
  refused("mamba2:head=8,scales=1/2", "scales is \"1/2\", want five numbers, of z, x, B, C and dt");
}

// Every sublayer once, in order, with rows that have gone through its norm; and no logit changes.
TEST(Watch, SeesWhatEntersEverySublayer) {
  Context ctx;
  const auto stack = make_stack(ctx);
  const Batch batch = make_batch();
  std::vector<size_t> order;
  std::vector<Tensor> rows;
  const ForwardOptions options{.watch = [&](size_t index, const Tensor& x) {
    order.push_back(index);
    rows.push_back(x);
  }};
  const Tensor watched = stack->forward(ctx, batch.tokens, batch.sequences, options);
  EXPECT_TRUE(same_bits(watched, stack->forward(ctx, batch.tokens, batch.sequences)));
  ASSERT_EQ(order.size(), stack->sublayers().size());
  for (size_t i = 0; i < order.size(); ++i) {
    EXPECT_EQ(order[i], i);
    EXPECT_EQ(rows[i].shape(), (Shape{batch.sequences.tokens(), kWidth}));
    if (stack->sublayers()[i].feeds_next) continue;
    for (int64_t n = 0; n < rows[i].rows(); ++n) {  // normed: of unit mean square
      double sum = 0;
      for (int64_t d = 0; d < kWidth; ++d) sum += std::pow(rows[i].f32()[n * kWidth + d], 2);
      EXPECT_NEAR(sum / kWidth, 1, 1e-2);
    }
  }
}

TEST(Load, TakesTensorsFromAnywhere) {
  Context ctx;
  const auto stack = make_stack(ctx);
  std::map<std::string, Tensor> values;
  for (const auto& [name, parameter] : stack->parameters()) values[name] = parameter->value;
  Stack loaded(config_of(shared_stack()));
  loaded.load(ctx, [&](const std::string& name, const Shape& shape) {
    EXPECT_EQ(values.at(name).shape(), shape);
    return std::vector<Tensor>{values.at(name)};
  });
  const Batch batch = make_batch();
  EXPECT_TRUE(same_bits(loaded.forward(ctx, batch.tokens, batch.sequences),
                        stack->forward(ctx, batch.tokens, batch.sequences)));
}

// Parameters of the models that the examples train, in thousands; names of published ones say them.
TEST(Examples, AreStacksOfTheirSize) {
  const std::tuple<std::string, int64_t, int64_t> kExamples[] = {
      {"samba_421m.json", 32000, 421793},
      {"switch_base_8.json", 32128, 307845},
      {"young_readers.json", 2048, 2569}};
  for (const auto& [name, vocab, thousands] : kExamples) {
    SCOPED_TRACE(name);
    const auto path = std::filesystem::path(BRAID_SOURCE_DIR) / "examples" / name;
    const nlohmann::json root = read_json(path);
    const JsonObject example(root, name);
    ModelConfig config;
    config.vocab = vocab;
    config.width = example.integer("width", 1, 1 << 20);
    config.tied = example.flag_or("tied", false);
    config.sublayers = parse_stack(example.text("stack"));
    EXPECT_EQ(Stack(config).parameter_count() / 1000, thousands);
  }
}

}  // namespace
}  // namespace braid
