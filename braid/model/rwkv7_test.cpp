// Goal: both dialects of RWKV-7 give one model, sizes that contradict each other are refused in one
// line, and a stack of it trains with its layers' shared values. Method: the reference checkpoints
// of tests/golden, whole and with tensors or keys changed.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/model/checkpoint.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::golden;
using test::TemporaryFolder;

TEST(Rwkv7, BothDialectsAreOneModel) {
  const Checkpoint fla = Checkpoint::open(golden("rwkv7_fla"));
  const Checkpoint lm = Checkpoint::open(golden("rwkv7_blink"));
  EXPECT_EQ(fla.config().model_type, "rwkv7");
  EXPECT_EQ(lm.config().model_type, "rwkv_lm");
  EXPECT_EQ(print_stack(lm.config().sublayers), print_stack(fla.config().sublayers));
  EXPECT_EQ(print_stack(lm.config().sublayers),
            "(rwkv7:head=32,w=16,a=16,v=16,g=24 rwkv7_cmix:hidden=160)x3");
  EXPECT_EQ(lm.config().vocab, fla.config().vocab);
  EXPECT_EQ(lm.config().width, fla.config().width);
  EXPECT_EQ(lm.config().norm, NormKind::kLayer);
  EXPECT_TRUE(lm.config().embedding_norm && fla.config().embedding_norm);
  Stack stack(fla.config());
  for (const auto& [name, parameter] : stack.parameters()) {
    const auto a = fla.sources(name, parameter->shape), b = lm.sources(name, parameter->shape);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(test::same_bits(a[i], b[i])) << name;
  }
  fla.expect_all_used();
  lm.expect_all_used();
}

TEST(Rwkv7, ItsConfigSurvivesInOurOwnFormat) {
  const Checkpoint lm = Checkpoint::open(golden("rwkv7_blink"));
  const TemporaryFolder folder;
  test::write_bytes(folder / "config.json", print_config(lm.config()));
  const ModelConfig got = load_config(folder.path());
  EXPECT_TRUE(got.embedding_norm);
  EXPECT_TRUE(got.sublayers == lm.config().sublayers);
}

// Loads a copy of the RWKV-LM checkpoint whose tensors `change` has edited.
void load_edited(const std::function<void(std::vector<NamedTensor>&)>& change) {
  const TemporaryFolder folder;
  const auto file = SafetensorsFile::open(golden("rwkv7_blink"));
  std::vector<NamedTensor> tensors;
  for (const std::string& name : file.names()) tensors.emplace_back(name, file.tensor(name));
  change(tensors);
  save_safetensors(folder / "model.safetensors", tensors);
  Context ctx({.threads = 1});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  Stack stack(checkpoint.config());
  stack.load(ctx, checkpoint);
}

void load_without(const std::string& lost) {
  load_edited([&](std::vector<NamedTensor>& tensors) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.first == lost; });
  });
}

void load_with(const std::string& name, const Shape& shape) {
  load_edited([&](std::vector<NamedTensor>& tensors) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.first == name; });
    tensors.emplace_back(name, test::randn(shape, 1));
  });
}

TEST(Rwkv7, WhatTheFirstLayerDoesNotUseMayBeThere) {
  load_edited([](std::vector<NamedTensor>& tensors) {
    tensors.emplace_back("blocks.0.att.v0", test::randn({1, 1, 64}, 1));
    tensors.emplace_back("blocks.0.att.v1", test::randn({64, 32}, 1));
    tensors.emplace_back("blocks.0.att.v2", test::randn({32, 64}, 1));
  });
  load_with("blocks.1.att.x_r", {64});  // vectors may have lost their extents of 1
}

TEST(Rwkv7, RefusesTensorsThatDoNotFit) {
  expect_refused([] { load_without("blocks.1.att.w1"); },
                 "has no tensor \"blocks.1.att.w1\", want (64, N)");
  expect_refused([] { load_without("blocks.2.att.v2"); },
                 "has no tensor \"blocks.2.att.v2\", want (64, 16) of sublayers.4.rwkv7.v2.weight");
  expect_refused([] { load_without("blocks.1.att.a0"); }, "has no tensor \"blocks.1.att.a0\"");
  expect_refused([] { load_without("blocks.1.att.r_k"); },
                 "has no tensor \"blocks.1.att.r_k\", want (N, N)");
  expect_refused([] { load_without("blocks.0.ln0.weight"); },
                 "has no tensor \"blocks.0.ln0.weight\"");
  expect_refused(
      [] {
        load_with("blocks.0.att.r_k", {2, 30});
      },
      "tensor \"blocks.0.att.r_k\" has shape (2, 30), want (H, P) with H P = 64");
  expect_refused(
      [] {
        load_with("blocks.1.att.g1", {60, 24});
      },
      "tensor \"blocks.1.att.g1\" has shape (60, 24), want (64, N)");
  expect_refused(
      [] {
        load_with("blocks.1.att.g2", {20, 64});
      },
      "tensor \"blocks.1.att.g2\" has shape (20, 64), want (24, 64)");
  expect_refused(
      [] {
        load_with("blocks.2.ffn.value.weight", {64, 100});
      },
      "tensor \"blocks.2.ffn.value.weight\" has shape (64, 100), want (64, 160)");
  expect_refused(
      [] {
        load_with("blocks.2.att.x_g", {1, 1, 32});
      },
      "tensor \"blocks.2.att.x_g\" has shape (1, 1, 32), want (64)");
  expect_refused(
      [] {
        load_with("blocks.7.att.x_g", {1, 1, 64});
      },
      "has no tensor \"blocks.3.att.r_k\"");
  expect_refused([] { load_with("blocks.1.att.z", {64}); },
                 "tensor \"blocks.1.att.z\" of shape (64) is not part of a rwkv_lm model");
}

TEST(Rwkv7, OlderFilesHoldTheSixShiftsInOneTensor) {
  const TemporaryFolder folder;
  const auto file = SafetensorsFile::open(golden("rwkv7_fla"));
  std::vector<NamedTensor> tensors;
  for (const std::string& name : file.names()) {
    if (name.find(".attn.x_") == std::string::npos) tensors.emplace_back(name, file.tensor(name));
  }
  for (int layer = 0; layer < 3; ++layer) {
    std::vector<float> all;
    for (const char c : std::string("rwkvag")) {
      const Tensor one = file.tensor(fmt::format("model.layers.{}.attn.x_{}", layer, c));
      all.insert(all.end(), one.f32(), one.f32() + one.count());
    }
    tensors.emplace_back(fmt::format("model.layers.{}.attn.x_x", layer),
                         host_tensor(std::move(all), {6, 64}));
  }
  save_safetensors(folder / "model.safetensors", tensors);
  fs::copy_file(golden("rwkv7_fla") / "config.json", folder / "config.json");
  const Checkpoint older = Checkpoint::open(folder.path());
  const Checkpoint newer = Checkpoint::open(golden("rwkv7_fla"));
  for (const char c : std::string("rwkvag")) {
    const std::string name = fmt::format("sublayers.2.rwkv7.x_{}", c);
    EXPECT_TRUE(older.contains(name));
    EXPECT_TRUE(test::same_bits(older.sources(name, {64})[0], newer.sources(name, {64})[0])) << c;
  }
  Context ctx({.threads = 1});
  Stack(older.config()).load(ctx, older);  // nothing is missing, nothing left over
}

// The configuration of flash-linear-attention with `patch` merged into it.
ModelConfig patched(const char* patch) {
  nlohmann::json root =
      nlohmann::json::parse(test::read_bytes(golden("rwkv7_fla") / "config.json"));
  root.merge_patch(nlohmann::json::parse(patch));
  return parse_config(root, "c");
}

TEST(Rwkv7, RefusesConfigsThatContradictThemselves) {
  constexpr std::pair<const char*, const char*> kCases[] = {
      {R"({"head_dim": 30})", "c: head_dim is 30, want a divisor of hidden_size, 64"},
      {R"({"num_heads": 4})", "c: num_heads is 4, want hidden_size / head_dim = 2"},
      {R"({"norm_bias": false})", "c: norm_bias is false, want true"},
      {R"({"attn": {"layers": [1]}})", "c: attn is"},
      {R"({"hidden_act": "silu"})", "c: hidden_act is \"silu\", want \"sqrelu\" or \"relu2\""},
      {R"({"value_dim": [64, 128, 64]})", "c: value_dim is"},
      {R"({"decay_low_rank_dim": -1})", "c: decay_low_rank_dim is -1"},
      {R"({"model_type": "rwkv_lm"})", "c: model_type is \"rwkv_lm\", want no config.json"},
  };
  for (const auto& [patch, want] : kCases) {
    SCOPED_TRACE(patch);
    expect_refused([p = patch] { patched(p); }, want);
  }
  EXPECT_FALSE(patched(R"({"norm_first": false})").embedding_norm);
  EXPECT_EQ(to_string(patched(R"({"head_dim": null})").sublayers[0]),
            "rwkv7:head=32,w=16,a=16,v=16,g=24");
  EXPECT_EQ(to_string(patched(R"({"norm_eps": 1e-6, "a_low_rank_dim": null})").sublayers[0]),
            "rwkv7:head=32,eps=6.4e-05,w=16,v=16,g=24");
  EXPECT_EQ(to_string(patched(R"({"intermediate_size": null})").sublayers[1]),
            "rwkv7_cmix:hidden=160");
}

// The gradients of all parameters of a small stack, by name.
std::map<std::string, std::vector<double>> gradients(bool again) {
  Context ctx({.threads = 2, .poison = true});
  ModelConfig config;
  config.vocab = 50;
  config.width = 32;
  config.norm = NormKind::kLayer;
  config.embedding_norm = true;
  config.sublayers = parse_stack("(rwkv7:head=16,w=4,a=4,v=4,g=4 rwkv7_cmix:hidden=48)x3");
  Stack stack(config, {.trainable = true, .recompute = again});
  for (const auto& [name, parameter] : stack.parameters()) {
    if (parameter->matrix) parameter->init = init_normal(0.2f);  // some start at zero
  }
  stack.initialize(ctx, Rng(3));
  Tape::Sinks sinks;
  for (const auto& [name, p] : stack.parameters()) {
    sinks[p->value.grad_id()] = ctx.zeros(p->shape);
  }
  SequenceBatch batch;
  batch.add(19);
  batch.add(5);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 24; ++i) tokens.push_back(i * 7 % 50);
  Tape tape(&sinks);
  Context taped = ctx.with_tape(&tape);
  const Tensor logits = stack.forward(taped, tokens, batch);
  tape.backward(ctx, {logits}, {test::randn(logits.shape(), 9)});
  std::map<std::string, std::vector<double>> out;
  for (const auto& [name, p] : stack.parameters()) {
    out[name] = test::values(sinks[p->value.grad_id()]);
  }
  return out;
}

TEST(Rwkv7, RecomputingAStackChangesNoGradient) {
  const auto once = gradients(false), again = gradients(true);
  EXPECT_EQ(once, again);
  for (const auto& [name, values] : once) {
    EXPECT_TRUE(std::ranges::any_of(values, [](double v) { return v != 0; })) << name;
  }
}

}  // namespace
}  // namespace braid
