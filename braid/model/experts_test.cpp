// Goal: the families with experts become the right stacks, their tensors are found whatever shape
// they are stored in, and what is missing or contradictory is refused by its name.
// Method: reference checkpoints of tests/golden; one valid config per family with one key changed;
// whole checkpoints with one tensor changed.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "braid/model/checkpoint.h"
#include "braid/model/families/family.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::golden;
using test::TemporaryFolder;
using test::write_bytes;

// The config of a golden checkpoint with the keys of `patch` put over it; null removes a key.
ModelConfig patched(const std::string& name, const char* patch) {
  nlohmann::json root = parse_json(test::read_bytes(golden(name) / "config.json"), "c");
  root.merge_patch(parse_json(patch, "c"));
  return parse_config(root, "c");
}

std::string stack(const std::string& name, const char* patch = "{}") {
  return print_stack(patched(name, patch).sublayers);
}

TEST(Experts, FamiliesBecomeStacks) {
  EXPECT_EQ(stack("mixtral"), "(attn:heads=4,kv=2,dim=16,theta=10000 moe:4/2,hidden=40,norm=1)x3");
  const std::string qwen = "attn:qk_norm=1,heads=4,kv=2,dim=16,theta=10000 ";
  EXPECT_EQ(stack("qwen3_moe"), qwen + "swiglu:hidden=96 (" + qwen + "moe:8/2,hidden=24,norm=1)x2");
  const std::string mamba = "mamba1:state=8,conv=4,inner=128,dt_rank=4,norms=weighted ";
  const std::string moe = " moe:4/2,hidden=40,norm=0 ";
  EXPECT_EQ(stack("jamba"), mamba + "swiglu:hidden=40 " + mamba.substr(0, mamba.size() - 1) + moe +
                                "attn:heads=4,kv=2,dim=16,rope=none swiglu:hidden=40 " +
                                mamba.substr(0, mamba.size() - 1) + moe.substr(0, moe.size() - 1));
  const std::string ffn =
      " moe:4/2,hidden=24,router=selected,out_scale=0.6|swiglu:hidden=40,out_scale=0.6";
  const std::string mamba2 =
      "mamba2:state=16,head=16,heads=8,groups=1,conv=4,norm_groups=1,out_scale=0.6";
  EXPECT_EQ(stack("granitemoehybrid"),
            mamba2 + ffn + " attn:heads=4,kv=2,dim=16,rope=none,scale=0.2,out_scale=0.6" + ffn +
                " " + mamba2 + ffn);
  const ModelConfig granite = patched("granitemoehybrid", "{}");
  EXPECT_EQ(granite.embedding_scale, 2);
  EXPECT_EQ(granite.logit_scale, 1 / 0.7);
}

TEST(Experts, ReadsMixtralKeys) {
  EXPECT_EQ(stack("mixtral", R"({"sliding_window": 8, "num_local_experts": null})"),
            "(swa:8,heads=4,kv=2,dim=16,theta=10000 moe:8/2,hidden=40,norm=1)x3");
  EXPECT_NE(stack("mixtral", R"({"rope_parameters": null, "router_jitter_noise": 0.01})")
                .find("theta=1000000 moe:4/2,hidden=40,norm=1,jitter=0.01"),
            std::string::npos);
}

TEST(Experts, ReadsQwen3Keys) {
  const auto layers = [](const char* patch) {
    std::string kinds;
    for (const ParallelSpec& s : patched("qwen3_moe", patch).sublayers) {
      kinds += s.branches.at(0).name.substr(0, 1);
    }
    return kinds;
  };
  EXPECT_EQ(layers("{}"), "asamam");
  EXPECT_EQ(layers(R"({"mlp_only_layers": null})"), "amamam");
  EXPECT_EQ(layers(R"({"mlp_only_layers": [], "decoder_sparse_step": 2})"), "asamas");
  EXPECT_EQ(layers(R"({"num_local_experts": 0})"), "asasas");
  EXPECT_NE(stack("qwen3_moe", R"({"num_local_experts": null, "num_experts": 5,
                                    "norm_topk_prob": null})")
                .find("moe:5/2,hidden=24,norm=0"),
            std::string::npos);
  EXPECT_NE(stack("qwen3_moe", R"({"use_sliding_window": true, "sliding_window": 9,
                                    "attention_bias": true})")
                .find("swa:9,bias=1,out_bias=1,qk_norm=1,heads=4"),
            std::string::npos);
}

TEST(Experts, ReadsDenseQwen3) {
  constexpr const char* kDense = R"({"model_type": "qwen3", "num_local_experts": null})";
  const std::string rest = "qk_norm=1,heads=4,kv=2,dim=16,theta=10000 swiglu:hidden=96";
  EXPECT_EQ(stack("qwen3_moe", kDense), "(attn:" + rest + ")x3");
  EXPECT_EQ(stack("qwen3_moe", R"({"model_type": "qwen3", "head_dim": null,
                                   "use_sliding_window": true, "sliding_window": 9,
                                   "max_window_layers": 2})"),
            "(attn:qk_norm=1,heads=4,kv=2,dim=128,theta=10000 swiglu:hidden=96)x2 "
            "swa:9,qk_norm=1,heads=4,kv=2,dim=128,theta=10000 swiglu:hidden=96");
  EXPECT_EQ(stack("qwen3_moe", R"({"model_type": "qwen3", "use_sliding_window": true,
               "sliding_window": 9,
               "layer_types": ["sliding_attention", "full_attention", "full_attention"]})"),
            "swa:9,qk_norm=1,heads=4,kv=2,dim=16,theta=10000 (swiglu:hidden=96 attn:qk_norm=1,"
            "heads=4,kv=2,dim=16,theta=10000)x2 swiglu:hidden=96");
}

TEST(Experts, ReadsJambaAndGraniteKeys) {
  const std::string all = stack("jamba", R"({"attn_layer_period": 1, "attn_layer_offset": 0,
      "expert_layer_period": 1, "expert_layer_offset": 0})");
  EXPECT_EQ(all, "(attn:heads=4,kv=2,dim=16,rope=none moe:4/2,hidden=40,norm=0)x4");
  EXPECT_EQ(stack("jamba", R"({"num_experts": 1, "num_experts_per_tok": 1})").find("moe"),
            std::string::npos);
  EXPECT_NE(stack("jamba", R"({"mamba_dt_rank": "auto", "mamba_proj_bias": true})")
                .find("dt_rank=4,norms=weighted,bias=1"),
            std::string::npos);
  EXPECT_EQ(stack("granitemoehybrid", R"({"num_local_experts": 0, "residual_multiplier": 1,
      "layer_types": ["attention", "attention", "attention"],
      "position_embedding_type": "rope", "attention_multiplier": null})"),
            "(attn:heads=4,kv=2,dim=16,theta=10000,scale=1 swiglu:hidden=40)x3");
  const std::string nope = stack("granitemoehybrid", R"({"position_embedding_type": "nope"})");
  EXPECT_EQ(nope, stack("granitemoehybrid"));
  EXPECT_EQ(stack("granitemoehybrid", R"({"layer_types": null})").find("attn"), std::string::npos);
}

TEST(Experts, RefusesByKey) {
  const std::tuple<const char*, const char*, const char*> kCases[] = {
      {"mixtral", R"({"num_experts_per_tok": 5})",
       "c: num_experts_per_tok is 5, want at most num_local_experts, 4"},
      {"mixtral", R"({"num_experts_per_tok": 0})", "c: num_experts_per_tok is 0, want an integer"},
      {"mixtral", R"({"num_local_experts": 0})",
       "c: num_local_experts is 0, want an integer from 1"},
      {"mixtral", R"({"num_local_experts": 1000000})", "c: num_local_experts is 1000000, want"},
      {"mixtral", R"({"num_local_experts": 100000})",
       "c: num_local_experts is 100000, want at most 43690 in 3 layers"},
      {"mixtral", R"({"num_experts": 8})", "c: num_local_experts is 4, want 8 as in num_experts"},
      {"mixtral", R"({"intermediate_size": null})", "c: intermediate_size is missing"},
      {"mixtral", R"({"hidden_act": "relu"})", "c: hidden_act is \"relu\", want \"silu\""},
      {"mixtral", R"({"sliding_window": 0})", "c: sliding_window is 0, want an integer from 1"},
      {"mixtral", R"({"router_jitter_noise": 2})", "c: router_jitter_noise is 2"},
      {"qwen3_moe", R"({"moe_intermediate_size": 0})",
       "c: moe_intermediate_size is 0, want an integer from 1"},
      {"qwen3_moe", R"({"mlp_only_layers": [3]})",
       "c: mlp_only_layers[0] is 3, want an integer from 0 to 2"},
      {"qwen3_moe", R"({"decoder_sparse_step": 0})", "c: decoder_sparse_step is 0"},
      {"qwen3_moe", R"({"num_experts_per_tok": 9})",
       "c: num_experts_per_tok is 9, want at most num_local_experts, 8"},
      {"qwen3_moe", R"({"model_type": "qwen3", "layer_types": ["sliding_attention",
                        "full_attention", "full_attention"]})",
       "c: layer_types is a list of 3, want no sliding_attention without a window"},
      {"jamba", R"({"attn_layer_offset": 4})",
       "c: attn_layer_offset is 4, want less than attn_layer_period, 4"},
      {"jamba", R"({"expert_layer_offset": 2})",
       "c: expert_layer_offset is 2, want less than expert_layer_period, 2"},
      {"jamba", R"({"expert_layer_period": 0})", "c: expert_layer_period is 0, want"},
      {"jamba", R"({"mamba_expand": 0})", "c: mamba_expand is 0, want at least one channel"},
      {"granitemoehybrid", R"({"position_embedding_type": "alibi"})",
       "c: position_embedding_type is \"alibi\", want null, \"nope\" or \"rope\""},
      {"granitemoehybrid", R"({"logits_scaling": 0})", "c: logits_scaling is 0"},
      {"granitemoehybrid", R"({"shared_intermediate_size": 0})",
       "c: shared_intermediate_size is 0"},
      {"granitemoehybrid", R"({"layer_types": ["mamba", "attention", "moe"]})",
       "c: layer_types[2] is \"moe\", want one of mamba, attention"},
  };
  for (const auto& [name, patch, want] : kCases) {
    SCOPED_TRACE(patch);
    expect_refused([&, n = name, p = patch] { patched(n, p); }, want);
  }
}

// Before any expert is built.
TEST(Experts, RefusesASpecThatFillsTheMemory) {
  ModelConfig config;
  config.vocab = config.width = 64;
  config.sublayers = parse_stack("(moe:40000/1,hidden=8)x4");
  expect_refused([&] { Stack stack(config); },
                 "experts is \"40000/1\", want E/k: k of E, with k "
                 "from 1 to E and E up to 32768");
}

// A copy of a golden checkpoint whose tensors `change` has edited.
Checkpoint edited(const TemporaryFolder& folder, const std::string& name,
                  const std::function<void(std::vector<NamedTensor>&)>& change) {
  const auto file = SafetensorsFile::open(golden(name));
  std::vector<NamedTensor> tensors;
  for (const std::string& tensor : file.names()) tensors.emplace_back(tensor, file.tensor(tensor));
  change(tensors);
  fs::copy_file(golden(name) / "config.json", folder / "config.json",
                fs::copy_options::overwrite_existing);
  save_safetensors(folder / "model.safetensors", tensors);
  return Checkpoint::open(folder.path());
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST(Experts, TensorsAreFoundExpertByExpert) {
  const Checkpoint mixtral = Checkpoint::open(golden("mixtral"));
  const auto file = SafetensorsFile::open(golden("mixtral"));
  const std::string e = "model.layers.1.block_sparse_moe.experts.2.";
  const auto in = mixtral.sources("sublayers.3.moe.experts.2.gate_up.weight", {80, 64});
  ASSERT_EQ(in.size(), 2u);
  EXPECT_TRUE(same_bytes(in[0], file.tensor(e + "w1.weight")));
  EXPECT_TRUE(same_bytes(in[1], file.tensor(e + "w3.weight")));
  const auto out = mixtral.sources("sublayers.3.moe.experts.2.down.weight", {64, 40});
  EXPECT_TRUE(same_bytes(out.at(0), file.tensor(e + "w2.weight")));
  EXPECT_TRUE(mixtral.contains("sublayers.5.moe.router.weight"));
  EXPECT_FALSE(mixtral.contains("sublayers.5.moe.experts.4.down.weight"));
  EXPECT_FALSE(mixtral.contains("sublayers.5.moe.router.bias"));
}

TEST(Experts, TensorsOfAllExpertsAreCutApart) {
  const Checkpoint granite = Checkpoint::open(golden("granitemoehybrid"));
  const auto file = SafetensorsFile::open(golden("granitemoehybrid"));
  const Tensor all = file.tensor("model.layers.1.block_sparse_moe.input_linear.weight");
  for (int64_t i = 0; i < 4; ++i) {
    const auto name = fmt::format("sublayers.3.moe.experts.{}.gate_up.weight", i);
    const auto parts = granite.sources(name, {48, 64});
    ASSERT_EQ(parts.size(), 1u);
    EXPECT_EQ(parts[0].shape(), (Shape{48, 64}));
    EXPECT_TRUE(same_bytes(parts[0], all.slice_rows(i, i + 1))) << i;
  }
  const auto shared = granite.sources("sublayers.3.swiglu.gate_up.weight", {80, 64});
  EXPECT_TRUE(
      same_bytes(shared.at(0), file.tensor("model.layers.1.shared_mlp.input_linear.weight")));
}

TEST(Experts, RefusesMissingAndMisshapenTensors) {
  const TemporaryFolder folder;
  const auto without = [](const char* name) {
    return [=](std::vector<NamedTensor>& tensors) {
      std::erase_if(tensors, [=](const NamedTensor& t) { return t.first == name; });
    };
  };
  const auto reading = [](const Checkpoint& checkpoint, const char* name, const Shape& shape) {
    return [&checkpoint, name, shape] { checkpoint.sources(name, shape); };
  };
  {
    const Checkpoint damaged =
        edited(folder, "mixtral", without("model.layers.1.block_sparse_moe.experts.3.w3.weight"));
    expect_refused(reading(damaged, "sublayers.3.moe.experts.3.gate_up.weight", {80, 64}),
                   "has no tensor \"model.layers.1.block_sparse_moe.experts.3.w3.weight\", want "
                   "(80, 64) of sublayers.3.moe.experts.3.gate_up.weight");
  }
  constexpr const char* kFused = "model.layers.0.block_sparse_moe.input_linear.weight";
  {
    const Checkpoint damaged = edited(folder, "granitemoehybrid", without(kFused));
    expect_refused(reading(damaged, "sublayers.1.moe.experts.3.gate_up.weight", {48, 64}),
                   "has no tensor \"model.layers.0.block_sparse_moe.input_linear.weight\"");
  }
  // One expert too many or too few, and experts of another width, are not this model.
  const Checkpoint granite = Checkpoint::open(golden("granitemoehybrid"));
  expect_refused(reading(granite, "sublayers.1.moe.experts.0.gate_up.weight", {40, 64}),
                 "input_linear.weight\" has shape (4, 48, 64), want (4, 40, 64)");
  for (const int64_t count : {3, 5}) {
    const Checkpoint damaged = edited(folder, "granitemoehybrid", [&](auto& tensors) {
      for (auto& [name, tensor] : tensors) {
        if (name != kFused) continue;
        std::vector<float> values(static_cast<size_t>(count * 48 * 64));
        tensor = host_tensor(std::move(values), {count, 48, 64});
      }
    });
    expect_refused(
        reading(damaged, "sublayers.1.moe.experts.0.gate_up.weight", {48, 64}),
        fmt::format("input_linear.weight\" has shape ({}, 48, 64), want (4, 48, 64)", count));
  }
  const Checkpoint more = edited(folder, "mixtral", [](auto& tensors) {
    tensors.emplace_back("model.layers.2.block_sparse_moe.experts.4.w1.weight", tensors[0].second);
  });
  expect_refused([&] { more.expect_all_used(); }, "is not part of a mixtral model");
}

}  // namespace
}  // namespace braid
