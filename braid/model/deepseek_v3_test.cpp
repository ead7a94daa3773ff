// Goal: DeepSeek-V3's config.json, in both generations of keys, becomes the right stack; layers
// that predict further tokens are passed over; what contradicts itself is refused by key.
// Method: the published config and one key changed at a time; the reference checkpoint of
// tests/golden with tensors added.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/model/checkpoint.h"
#include "braid/model/json.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::expect_refused;

// As published, but for five layers.
constexpr const char* kPublished = R"({"model_type": "deepseek_v3", "attention_bias": false,
  "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
  "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
  "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
  "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
  "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 5,
  "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
  "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "quantization_config": {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128]},
  "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
  "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280})";

// A null in `patch` stays one: here it means something.
ModelConfig patched(const std::string& patch) {
  nlohmann::json root = parse_json(kPublished, "c");
  const nlohmann::json changes = parse_json(patch, "c");
  for (const auto& [key, value] : changes.items()) root[key] = value;
  return parse_config(root, "c");
}

TEST(DeepseekV3, ThePublishedConfig) {
  const ModelConfig config = patched("{}");
  const std::string mla =
      "mla:heads=128,q_rank=1536,kv_rank=512,nope=128,rope_dim=64,value=128,rope=yarn,theta=10000,"
      "factor=40,original=4096,beta_fast=32,beta_slow=1,attention_factor=1,mscale_all_dim=1";
  const std::string moe =
      "moe:256/"
      "8,hidden=2048,router=sigmoid,select_bias=1,norm=1,scale=2.5,groups=8,keep=4,shared=1";
  ASSERT_EQ(config.sublayers.size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    const std::vector<ParallelSpec> one = {config.sublayers[i]};
    EXPECT_EQ(print_stack(one), i % 2 == 0 ? mla : i < 6 ? "swiglu:hidden=18432" : moe) << i;
  }
  EXPECT_EQ(config.fp8_block, (ScaleBlock{.rows = 128, .columns = 128}));
  EXPECT_EQ(config.extra_layers, 1);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.dtype, DType::kBF16);
}

TEST(DeepseekV3, ATokenCostsItsLatent) {
  const ModelConfig config = patched("{}");
  const auto mla = make_sublayer(config.sublayers[0].branches[0],
                                 {.width = config.width, .state_dtype = DType::kBF16});
  EXPECT_EQ(state_bytes(mla->state_spec(), 4096), 4096 * 576 * 2);
}

std::string first_layer(const std::string& patch) {
  const std::vector<ParallelSpec> one = {patched(patch).sublayers[0]};
  return print_stack(one);
}

TEST(DeepseekV3, BothGenerationsOfRopeKeys) {
  EXPECT_EQ(first_layer(R"({"rope_scaling": null, "rope_parameters": {"rope_theta": 10000.0,
      "rope_type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}})"),
            first_layer("{}"));
  const std::string plain =
      "mla:heads=128,q_rank=0,kv_rank=512,nope=128,rope_dim=64,value=128,theta=10000";
  const std::string lite = R"("q_lora_rank": null, )";
  EXPECT_EQ(first_layer("{" + lite + R"("rope_scaling": null})"), plain);
  EXPECT_EQ(first_layer("{" + lite + R"("rope_scaling": null, "rope_parameters": {
      "rope_theta": 10000.0, "rope_type": "default"}, "head_dim": 64, "qk_head_dim": 192})"),
            plain);
  EXPECT_EQ(first_layer("{" + lite + R"("rope_scaling": null, "rope_interleave": false,
      "attention_bias": true})"),
            "mla:heads=128,q_rank=0,kv_rank=512,nope=128,rope_dim=64,value=128,bias=1,"
            "interleaved=0,theta=10000");
}

TEST(DeepseekV3, WhichLayersAreDense) {
  const auto ffns = [](const std::string& patch) {
    std::string kinds;
    for (const ParallelSpec& sublayer : patched(patch).sublayers) {
      const std::string& name = sublayer.branches[0].name;
      if (name != "mla") kinds += name[0];
    }
    return kinds;
  };
  EXPECT_EQ(ffns("{}"), "sssmm");
  EXPECT_EQ(ffns(R"({"first_k_dense_replace": 1, "moe_layer_freq": 2})"), "ssmsm");
  EXPECT_EQ(ffns(R"({"first_k_dense_replace": 0})"), "mmmmm");
}

TEST(DeepseekV3, RefusesWhatContradictsItself) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"num_key_value_heads": 8})", "c: num_key_value_heads is 8, want 128"},
      {R"({"head_dim": 128})", "c: head_dim is 128, want 64, as qk_rope_head_dim"},
      {R"({"qk_head_dim": 128})", "c: qk_head_dim is 128, want 192"},
      {R"({"q_lora_rank": -1})", "c: q_lora_rank is -1"},
      {R"({"kv_lora_rank": 0})", "c: kv_lora_rank is 0"},
      {R"({"qk_rope_head_dim": 7})", "rotates 7 values, want a positive even"},
      {R"({"hidden_act": "gelu"})", "c: hidden_act is \"gelu\", want \"silu\""},
      {R"({"scoring_func": "softmax"})", "c: scoring_func is \"softmax\", want \"sigmoid\""},
      {R"({"topk_method": "greedy"})", "c: topk_method is \"greedy\", want \"noaux_tc\""},
      {R"({"n_group": 7})", "c: n_group is 7, want a divisor of 256"},
      {R"({"topk_group": 9})", "c: topk_group is 9, want at most n_group, 8"},
      {R"({"topk_group": 1, "num_experts_per_tok": 33})", "c: num_experts_per_tok is 33, want at"},
      {R"({"num_experts_per_tok": 300})", "c: num_experts_per_tok is 300, want at most"},
      {R"({"routed_scaling_factor": 0})", "c: routed_scaling_factor is 0"},
      {R"({"moe_layer_freq": 0})", "c: moe_layer_freq is 0"},
      {R"({"partial_rotary_factor": 0.5})", "c: partial_rotary_factor is 0.5, want 1"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 40, "mscale_all_dim": -1}})",
       "rope_scaling: mscale_all_dim is -1"},
      {R"({"quantization_config": {"quant_method": "awq"}})", "quant_method is \"awq\""}};
  for (const auto& [patch, want] : cases) {
    SCOPED_TRACE(patch);
    expect_refused([&] { patched(patch); }, want);
  }
}

// The reference checkpoint has three layers; the config announces one more.
TEST(DeepseekV3, LayersBehindTheLastArePassedOver) {
  const std::filesystem::path golden = test::golden("deepseek_v3");
  const test::TemporaryFolder folder;
  const SafetensorsFile file = SafetensorsFile::open(golden);
  const auto load = [&](const std::string& extra) {
    std::vector<NamedTensor> tensors;
    for (const std::string& name : file.names()) tensors.emplace_back(name, file.tensor(name));
    tensors.emplace_back(extra, test::randn({4}, 1));
    save_safetensors(folder / "model.safetensors", tensors);
    test::write_bytes(folder / "config.json", test::read_bytes(golden / "config.json"));
    Context ctx;
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    Stack stack(checkpoint.config());
    stack.load(ctx, checkpoint);
  };
  EXPECT_NO_THROW(load("model.layers.3.eh_proj.weight"));
  for (const std::string name :
       {"model.layers.4.eh_proj.weight", "model.layers.2.eh_proj.weight", "model.layers.3",
        "model.layers.03x.weight", "model.layers.99999999999999999999.weight"}) {
    expect_refused([&] { load(name); }, "is not part of a deepseek_v3 model");
  }
}

}  // namespace
}  // namespace braid
