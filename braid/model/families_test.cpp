// Goal: Qwen3-Next, MiniMax and Nemotron-H become the right stacks, in every generation of their
// keys; their projections, whose parts alternate head by head, and their norms of 1 + w are undone;
// what is contradictory is refused by key. Method: the reference checkpoints of tests/golden, with
// keys changed; rows of the files picked one by one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "braid/model/checkpoint.h"
#include "braid/model/json.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::golden;
using test::values;

// The golden config with the keys of `patch` put over it; null removes a key.
ModelConfig patched(const std::string& name, const std::string& patch) {
  nlohmann::json root = read_json(golden(name) / "config.json", {.python_numbers = true});
  root.merge_patch(parse_json(patch, "c", {.python_numbers = true}));
  return parse_config(root, "c");
}
std::string stack(const std::string& name, const std::string& patch) {
  return print_stack(patched(name, patch).sublayers);
}

constexpr const char* kDelta = "gated_delta:key_heads=2,heads=4,dim=16,value=16,conv=4 ";
constexpr const char* kGated =
    "attn:gate=1,qk_norm=1,heads=4,kv=2,dim=16,theta=10000,partial=0.25 ";
constexpr const char* kSharedMoe = "moe:4/2,hidden=24,norm=1,shared_hidden=32,shared_gate=1";

TEST(Qwen3Next, ReadsItsKeys) {
  const auto layers = [&](const std::string& delta_ffn) {
    return fmt::format("({}{})x3 {}{}", kDelta, delta_ffn, kGated, kSharedMoe);
  };
  EXPECT_EQ(stack("qwen3_next", "{}"), layers(kSharedMoe));
  EXPECT_EQ(stack("qwen3_next", R"({"layer_types": null})"), layers(kSharedMoe));
  EXPECT_EQ(stack("qwen3_next", R"({"layer_types": null, "full_attention_interval": 4})"),
            layers(kSharedMoe));
  EXPECT_EQ(stack("qwen3_next", R"({"mlp_only_layers": [0, 1, 2]})"), layers("swiglu:hidden=96"));
  EXPECT_EQ(stack("qwen3_next", R"({"decoder_sparse_step": 4})"), layers("swiglu:hidden=96"));
  EXPECT_EQ(stack("qwen3_next", R"({"num_experts": 0})").find("moe"), std::string::npos);
  EXPECT_NE(stack("qwen3_next", R"({"norm_topk_prob": false})").find("hidden=24,norm=0,"),
            std::string::npos);
  EXPECT_NE(stack("qwen3_next", R"({"attention_bias": true})").find("attn:bias=1,out_bias=1,gate"),
            std::string::npos);
  EXPECT_NE(stack("qwen3_next", R"({"rope_parameters": null, "partial_rotary_factor": null})")
                .find("theta=10000,partial=0.25"),
            std::string::npos);
}

TEST(MiniMax, ReadsItsKeys) {
  const auto linear = [](const char* decay) {
    return fmt::format(
        "lightning:heads=4,dim=16,slopes=geometric,decay={},value_silu=1,gate=sigmoid,"
        "norm_weight=1,residual=normed,residual_scale=1.1,out_scale=0.9",
        decay);
  };
  const std::string attn =
      "attn:heads=4,kv=2,dim=16,theta=10000{},residual=normed,residual_scale=1.2,out_scale=0.8";
  const std::string moe =
      "moe:4/2,hidden=32,norm=1,residual=normed,residual_scale=1.3,out_scale=0.7";
  const ModelConfig config = patched("minimax", "{}");
  ASSERT_EQ(config.sublayers.size(), 6u);
  EXPECT_EQ(to_string(config.sublayers[0]), linear("1.00001"));
  EXPECT_EQ(to_string(config.sublayers[2]), fmt::format(fmt::runtime(attn), ""));
  // 1 - 2 / (2 + 1e-5) + 1e-5
  SpecOptions last(config.sublayers[4].branches[0]);
  EXPECT_NEAR(last.number("decay", 0), 1.4999975e-5, 1e-12);
  for (const size_t i : {1, 3, 5}) EXPECT_EQ(to_string(config.sublayers[i]), moe);

  const auto attention = [](const char* patch) {
    return to_string(patched("minimax", patch).sublayers[2]);
  };
  EXPECT_EQ(attention(R"({"rotary_dim": 8})"), fmt::format(fmt::runtime(attn), ",partial=0.5"));
  EXPECT_EQ(attention(R"({"sliding_window": 7})").substr(0, 14), "swa:7,heads=4,");
  EXPECT_NE(stack("minimax", R"({"router_jitter_noise": 0.1})").find("norm=1,jitter=0.1,"),
            std::string::npos);
  // Without a list they take turns; without factors nothing is multiplied.
  const ModelConfig turns = patched("minimax", R"({"layer_types": null,
      "full_attn_alpha_factor": null, "full_attn_beta_factor": null})");
  EXPECT_EQ(to_string(turns.sublayers[0]), "attn:heads=4,kv=2,dim=16,theta=10000,residual=normed");
  EXPECT_EQ(turns.sublayers[2].branches[0].name, "lightning");
}

TEST(NemotronH, ReadsItsKeys) {
  const std::string mamba = "mamba2:state=16,head=16,heads=8,groups=1,conv=4,dt_min=0.001";
  const std::string moe =
      "moe:8/2,hidden=24,act=relu2,router=sigmoid,norm=1,scale=2.5,groups=2,keep=1,select_bias=1,"
      "shared_hidden=40";
  const std::string attn = "attn:heads=4,kv=2,dim=16,rope=none";
  const std::string whole = fmt::format("{0} {1} {2} {0} {1}", mamba, moe, attn);
  EXPECT_EQ(stack("nemotron_h", "{}"), whole);
  const std::string none = R"("layers_block_type": null)";
  EXPECT_EQ(stack("nemotron_h", "{" + none + R"(, "hybrid_override_pattern": "ME*ME"})"), whole);
  EXPECT_EQ(stack("nemotron_h", R"({"hybrid_override_pattern": "ME*ME"})"), whole);
  EXPECT_EQ(stack("nemotron_h", "{" + none + R"(, "layer_types": ["mamba", "moe", "attention",
                                 "mamba", "moe"], "num_hidden_layers": 5})"),
            whole);
  EXPECT_EQ(stack("nemotron_h", "{" + none + R"(, "hybrid_override_pattern": "-*M-",
                                 "mlp_hidden_act": "silu", "mamba_n_groups": 2, "head_dim": null,
                                 "attention_head_dim": 32, "mamba_dt_limit": [0.5, 2]})"),
            "mlp:hidden=96,act=silu attn:heads=4,kv=2,dim=32,rope=none "
            "mamba2:state=16,head=16,heads=8,groups=2,conv=4,dt_min=0.5,dt_max=2 "
            "mlp:hidden=96,act=silu");
  EXPECT_EQ(stack("nemotron_h", R"({"time_step_min": 0})").find("dt_min"), std::string::npos);
  // The inner width is that of the heads, whatever `expand` says.
  EXPECT_NE(stack("nemotron_h", R"({"mamba_num_heads": 6})").find("head=16,heads=6,"),
            std::string::npos);
}

TEST(Families, RefuseByKey) {
  const std::tuple<const char*, const char*, const char*> kCases[] = {
      {"qwen3_next", R"({"layer_types": ["linear_attention"]})",
       "c: layer_types is a list of 1, want a list of 4, as num_hidden_layers says"},
      {"qwen3_next", R"({"linear_num_value_heads": 3})",
       "c: linear_num_value_heads is 3, want a multiple of linear_num_key_heads, 2"},
      {"qwen3_next", R"({"linear_key_head_dim": 100000})",
       "c: linear_key_head_dim is 100000, want"},
      {"qwen3_next", R"({"full_attention_interval": 0})", "c: full_attention_interval is 0, want"},
      {"qwen3_next", R"({"mlp_only_layers": [4]})", "c: mlp_only_layers[0] is 4, want an integer"},
      {"qwen3_next", R"({"num_experts_per_tok": 5})", "c: num_experts_per_tok is 5, want at most"},
      {"qwen3_next", R"({"num_experts": 100000})", "c: num_experts is 100000, want at most"},
      {"qwen3_next", R"({"shared_expert_intermediate_size": 0})",
       "c: shared_expert_intermediate_size is 0, want"},
      {"qwen3_next", R"({"hidden_act": "gelu"})", "c: hidden_act is \"gelu\", want \"silu\""},
      {"minimax", R"({"layer_types": ["linear_attention", "full_attention", "moe"]})",
       "c: layer_types[2] is \"moe\", want one of mamba, attention"},
      {"minimax", R"({"mlp_alpha_factor": "x"})", "c: mlp_alpha_factor is \"x\", want a number"},
      {"minimax", R"({"linear_attn_beta_factor": Infinity})", "c: linear_attn_beta_factor is inf"},
      {"minimax", R"({"rotary_dim": 17})", "c: rotary_dim is 17, want an integer from 2 to 16"},
      {"minimax", R"({"num_attention_heads": 5000, "num_key_value_heads": 5000})",
       "c: num_attention_heads is 5000, want"},
      {"minimax", R"({"num_local_experts": 1})", "c: num_experts_per_tok is 2, want at most"},
      {"nemotron_h", R"({"layers_block_type": null})", "c: layers_block_type is missing"},
      {"nemotron_h", R"({"layers_block_type": []})", "c: layers_block_type is a list of 0, want"},
      {"nemotron_h", R"({"layers_block_type": ["mamba", 3]})",
       "c: layers_block_type[1] is 3, want one of mamba, attention, mlp, moe"},
      {"nemotron_h", R"({"hybrid_override_pattern": "ME*M-"})",
       "c: layers_block_type differs from hybrid_override_pattern, want the same layers"},
      {"nemotron_h", R"({"hybrid_override_pattern": "MX"})",
       "c: hybrid_override_pattern is \"MX\", want letters among M, *, - and E"},
      {"nemotron_h", R"({"hybrid_override_pattern": ""})", "c: hybrid_override_pattern is \"\""},
      {"nemotron_h", R"({"num_hidden_layers": 6})", "c: num_hidden_layers is 6, want 5, as many"},
      {"nemotron_h", R"({"moe_latent_size": 16})", "c: moe_latent_size is 16, want null"},
      {"nemotron_h", R"({"mlp_hidden_act": "tanh"})", "c: mlp_hidden_act is \"tanh\", want relu2"},
      {"nemotron_h", R"({"mlp_bias": true})", "c: mlp_bias is true, want false"},
      {"nemotron_h", R"({"n_group": 3})", "c: n_group is 3, want a divisor of n_routed_experts, 8"},
      {"nemotron_h", R"({"n_group": 8})",
       "c: topk_group is 1, want groups with at least 2 experts, not 1"},
      {"nemotron_h", R"({"topk_group": 3})", "c: topk_group is 3, want an integer from 1 to 2"},
      {"nemotron_h", R"({"n_routed_experts": 100000})", "c: n_routed_experts is 100000, want at"},
      {"nemotron_h", R"({"n_shared_experts": 2})", "c: n_shared_experts is 2, want 1"},
      {"nemotron_h", R"({"sliding_window": 8})", "c: sliding_window is 8, want null"},
      {"nemotron_h", R"({"attention_head_dim": 32})", "c: attention_head_dim is 32, want 16"},
      {"nemotron_h", R"({"n_groups": 3})", "c: n_groups is 3, want a divisor of mamba_num_heads"},
      {"nemotron_h", R"({"mamba_hidden_act": "relu"})", "c: mamba_hidden_act is \"relu\", want"},
  };
  for (const auto& [name, patch, want] : kCases) {
    SCOPED_TRACE(patch);
    expect_refused([&, n = name, p = patch] { patched(n, p); }, want);
  }
}

// The rows of a parameter, and the rows of the file that it should be.
std::vector<double> rows_of(const Checkpoint& checkpoint, const std::string& name, Shape shape) {
  std::vector<double> out;
  for (const Tensor& source : checkpoint.sources(name, shape)) {
    const std::vector<double> part = values(source);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}
std::vector<double> picked(const Tensor& tensor, const std::vector<int64_t>& rows) {
  std::vector<double> out;
  for (const int64_t row : rows) {
    const std::vector<double> one = values(tensor.slice_rows(row, row + 1));
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}
// first, first + 1, ... of each of `blocks` blocks.
void add_runs(std::vector<int64_t>* rows, int64_t blocks, int64_t block, int64_t first,
              int64_t count) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < count; ++i) rows->push_back(b * block + first + i);
  }
}

TEST(Families, UndoProjectionsThatAlternate) {
  const auto check_rows = [](const char* model, const char* name, const char* tensor, Shape shape,
                             const std::vector<int64_t>& want) {
    SCOPED_TRACE(name);
    const Checkpoint checkpoint = Checkpoint::open(golden(model));
    const auto file = SafetensorsFile::open(golden(model));
    EXPECT_EQ(rows_of(checkpoint, name, shape), picked(file.tensor(tensor), want));
  };
  // Two key heads of [q 16 | k 16 | v 2 x 16 | z 2 x 16] and [b 2 | a 2].
  std::vector<int64_t> qkv, z, ba;
  for (const int64_t first : {0, 16}) add_runs(&qkv, 2, 96, first, 16);
  add_runs(&qkv, 2, 96, 32, 32);
  add_runs(&z, 2, 96, 64, 32);
  for (const int64_t first : {0, 2}) add_runs(&ba, 2, 4, first, 2);
  const char* qkvz = "model.layers.1.linear_attn.in_proj_qkvz.weight";
  check_rows("qwen3_next", "sublayers.2.gated_delta.in_proj_qkv.weight", qkvz, {128, 64}, qkv);
  check_rows("qwen3_next", "sublayers.2.gated_delta.in_proj_z.weight", qkvz, {64, 64}, z);
  check_rows("qwen3_next", "sublayers.2.gated_delta.in_proj_ba.weight",
             "model.layers.1.linear_attn.in_proj_ba.weight", {8, 64}, ba);

  // Queries, keys, values, gates; in the file each head's gate follows its query.
  const Checkpoint qwen = Checkpoint::open(golden("qwen3_next"));
  const auto file = SafetensorsFile::open(golden("qwen3_next"));
  const std::string attention = "model.layers.3.self_attn.";
  std::vector<int64_t> q, gate, all;
  add_runs(&q, 4, 32, 0, 16);
  add_runs(&gate, 4, 32, 16, 16);
  add_runs(&all, 1, 32, 0, 32);
  std::vector<double> want = picked(file.tensor(attention + "q_proj.weight"), q);
  for (const auto& [name, rows] :
       {std::pair("k_proj.weight", all), {"v_proj.weight", all}, {"q_proj.weight", gate}}) {
    const std::vector<double> more = picked(file.tensor(attention + name), rows);
    want.insert(want.end(), more.begin(), more.end());
  }
  EXPECT_EQ(rows_of(qwen, "sublayers.6.attn.qkv_proj.weight", {192, 64}), want);
  expect_refused(
      [&] {
        rows_of(qwen, "sublayers.6.attn.qkv_proj.weight", {208, 64});
      },
      "have 192 rows, want 208");
  expect_refused(
      [&] {
        rows_of(qwen, "sublayers.2.gated_delta.in_proj_z.weight", {96, 64});
      },
      "has shape (192, 64), want (288, 64)");

  // Four heads of [q 16 | k 16 | v 16], then the gate.
  const Checkpoint minimax = Checkpoint::open(golden("minimax"));
  const auto tensors = SafetensorsFile::open(golden("minimax"));
  std::vector<int64_t> heads;
  for (const int64_t first : {0, 16, 32}) add_runs(&heads, 4, 48, first, 16);
  want = picked(tensors.tensor("model.layers.2.self_attn.qkv_proj.weight"), heads);
  const auto u = values(tensors.tensor("model.layers.2.self_attn.output_gate.weight"));
  want.insert(want.end(), u.begin(), u.end());
  EXPECT_EQ(rows_of(minimax, "sublayers.4.lightning.qkvu_proj.weight", {256, 64}), want);
}

TEST(Families, AddOneToNormsThatLackIt) {
  const Checkpoint checkpoint = Checkpoint::open(golden("qwen3_next"));
  const auto file = SafetensorsFile::open(golden("qwen3_next"));
  const std::tuple<const char*, const char*, bool> kNorms[] = {
      {"sublayers.0.norm.weight", "model.layers.0.input_layernorm.weight", true},
      {"sublayers.7.norm.weight", "model.layers.3.post_attention_layernorm.weight", true},
      {"sublayers.6.attn.q_norm.weight", "model.layers.3.self_attn.q_norm.weight", true},
      {"sublayers.6.attn.k_norm.weight", "model.layers.3.self_attn.k_norm.weight", true},
      {"final_norm.weight", "model.norm.weight", true},
      {"sublayers.0.gated_delta.norm.weight", "model.layers.0.linear_attn.norm.weight", false}};
  for (const auto& [name, tensor, adds] : kNorms) {
    SCOPED_TRACE(name);
    const Tensor stored = file.tensor(tensor);
    std::vector<double> want;
    for (const double w : values(stored)) {
      want.push_back(adds ? 1.0f + static_cast<float>(w) : static_cast<float>(w));
    }
    EXPECT_EQ(rows_of(checkpoint, name, stored.shape()), want);
  }
}

}  // namespace
}  // namespace braid
