// Goal: every config.json of the supported families becomes the right stack, in both generations of
// keys, and what is unknown or contradictory is refused by key.
// Method: reference checkpoints of tests/golden; one valid config per family with one key changed.
#include "braid/model/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "braid/model/json.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"

namespace braid {
namespace {

using test::expect_refused;
using test::golden;
using test::TemporaryFolder;
using test::write_bytes;

// `base` with the keys of `patch` (a JSON object) put over it; null removes a key.
ModelConfig patched(const char* base, const char* patch) {
  nlohmann::json root = parse_json(base, "c", {.python_numbers = true});
  root.merge_patch(parse_json(patch, "c", {.python_numbers = true}));
  return parse_config(root, "c");
}

constexpr const char* kLlama = R"({"model_type": "llama", "vocab_size": 256, "hidden_size": 64,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "intermediate_size": 96, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
  "hidden_act": "silu", "rope_theta": 10000.0, "torch_dtype": "bfloat16", "bos_token_id": 1,
  "eos_token_id": [2, 3]})";
constexpr const char* kMamba2 = R"({"model_type": "mamba2", "vocab_size": 256, "hidden_size": 64,
  "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16,
  "conv_kernel": 4, "expand": 2, "time_step_limit": [0.0, Infinity]})";
constexpr const char* kBamba = R"({"model_type": "bamba", "vocab_size": 256, "hidden_size": 64,
  "num_hidden_layers": 3, "attn_layer_indices": [1], "num_attention_heads": 4,
  "num_key_value_heads": 2, "intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_head": "auto",
  "mamba_d_state": 16})";
constexpr const char* kFalconH1 = R"({"model_type": "falcon_h1", "vocab_size": 256,
  "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 16, "intermediate_size": 96, "mamba_n_heads": 6, "mamba_d_head": 16,
  "mamba_d_ssm": 96, "mamba_d_state": 16})";
constexpr const char* kZamba2 = R"({"model_type": "zamba2", "vocab_size": 256, "hidden_size": 64,
  "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
  "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32,
  "adapter_rank": 8, "num_mem_blocks": 2, "n_mamba_heads": 8, "mamba_d_state": 16})";
constexpr const char* kNative = R"({"model_type": "braid", "vocab_size": 256, "hidden_size": 64,
  "stack": "(swa:16 swiglu)x2 mamba2:state=16"})";

std::string llama(const char* patch) { return print_stack(patched(kLlama, patch).sublayers); }

TEST(Config, ReadsTheReferenceCheckpoints) {
  const std::string ffn = " swiglu:hidden=96)x3";
  const std::string attn = "(attn:heads=4,kv=2,dim=16,";
  const std::pair<const char*, std::string> kCases[] = {
      {"llama", attn + "theta=10000" + ffn},
      {"llama_linear", attn + "rope=linear,theta=10000,factor=4" + ffn},
      {"llama_dynamic", attn + "rope=dynamic,theta=10000,factor=2,max=32" + ffn},
      {"llama_llama3", attn + "rope=llama3,theta=500000,factor=8,original=32,low=1,high=4" + ffn},
      {"llama_yarn",
       attn + "rope=yarn,theta=10000,factor=4,original=32,beta_fast=32,beta_slow=1" + ffn},
      {"llama_longrope", attn +
                             "rope=longrope,theta=10000,factor=4,original=32,"
                             "short=1/1.05/1.1/1.15/1.2/1.25/1.3/1.35,"
                             "long=1/1.6/2.2/2.8/3.4/4/4.6/5.2" +
                             ffn},
      {"mistral", "(swa:16,heads=4,kv=2,dim=16,theta=10000" + ffn},
      {"mamba2_g1", "(mamba2:state=16,head=16,heads=8,groups=1,conv=4,norm_groups=1)x3"},
      {"mamba2_g2", "(mamba2:state=16,head=16,heads=8,groups=2,conv=4,norm_groups=1)x3"},
      {"mamba", "(mamba1:state=16,conv=4,inner=128,dt_rank=4)x3"},
      {"falcon_mamba", "(mamba1:state=16,conv=4,inner=128,dt_rank=4,norms=plain,norm_eps=1e-06)x3"},
      {"bamba",
       "mamba2:state=16,head=16,heads=8,groups=1,conv=4,norm_groups=1 swiglu:hidden=96 "
       "attn:heads=4,kv=2,dim=16,theta=10000,partial=0.5 swiglu:hidden=96 "
       "mamba2:state=16,head=16,heads=8,groups=1,conv=4,norm_groups=1 swiglu:hidden=96"},
      {"falcon_h1",
       "(attn:heads=4,kv=2,dim=16,theta=10000,scale=0.15,in_scale=1.1,out_scale=0.9|"
       "mamba2:state=16,head=16,heads=8,groups=1,conv=4,norm=0,scales=0.5/0.6/0.7/0.8/1.3,"
       "in_scale=1.25,out_scale=0.75 swiglu:hidden=96,gate_scale=1.2,out_scale=0.8)x2"},
  };
  for (const auto& [name, stack] : kCases) {
    SCOPED_TRACE(name);
    const ModelConfig config = load_config(golden(name));
    EXPECT_EQ(print_stack(config.sublayers), stack);
    EXPECT_EQ(config.vocab, 256);
    EXPECT_EQ(config.width, 64);
    EXPECT_EQ(config.tied, std::string_view(name).ends_with("mamba"));
    EXPECT_EQ(config.norm_eps, 1e-5);
    EXPECT_EQ(config.dtype, DType::kF32);
    EXPECT_EQ(config.bos, 1);
    EXPECT_EQ(config.eos, std::vector<int64_t>{2});
  }
}

TEST(Config, ReadsLlamaKeys) {
  const ModelConfig config = patched(kLlama, "{}");
  EXPECT_EQ(config.max_context, 128);
  EXPECT_EQ(config.dtype, DType::kBF16);
  EXPECT_EQ(config.eos, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(llama("{}"), "(attn:heads=4,kv=2,dim=16,theta=10000 swiglu:hidden=96)x2");
  EXPECT_EQ(llama(R"({"num_key_value_heads": null, "head_dim": 8})"),
            "(attn:heads=4,kv=4,dim=8,theta=10000 swiglu:hidden=96)x2");
  EXPECT_EQ(llama(R"({"attention_bias": true, "mlp_bias": true})"),
            "(attn:bias=1,out_bias=1,heads=4,kv=2,dim=16,theta=10000 swiglu:hidden=96,bias=1)x2");
  EXPECT_TRUE(patched(kLlama, R"({"tie_word_embeddings": true})").tied);
  EXPECT_EQ(patched(kLlama, R"({"torch_dtype": "float16"})").dtype, DType::kF32);
}

TEST(Config, ReadsBothGenerationsOfRopeKeys) {
  const std::string want =
      "(attn:heads=4,kv=2,dim=16,rope=linear,theta=500,factor=4 "
      "swiglu:hidden=96)x2";
  for (
      const char* patch :
      {R"({"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 4}})",
       R"({"rope_theta": 500, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})",
       R"({"rope_theta": 500, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}})",
       R"({"rope_theta": null,
            "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 500}})",
       R"({"rope_theta": 500, "rope_parameters": {"rope_type": "linear", "factor": 4}})"}) {
    EXPECT_EQ(llama(patch), want) << patch;
  }
  // The factor and the attention factor may follow from other keys.
  EXPECT_NE(llama(R"({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 32}})")
                .find("factor=4,original=32,beta_fast=32,beta_slow=1"),
            std::string::npos);
  EXPECT_NE(
      llama(R"({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": 1}})")
          .find("attention_factor=1 "),
      std::string::npos);
  EXPECT_NE(llama(R"({"partial_rotary_factor": 0.5})").find("partial=0.5"), std::string::npos);
}

TEST(Config, ReadsMistralWindows) {
  const auto mixer = [](const char* patch) {
    return patched(kLlama, patch).sublayers[0].branches[0];
  };
  EXPECT_EQ(mixer(R"({"model_type": "mistral", "sliding_window": 16})").name, "swa");
  EXPECT_EQ(mixer(R"({"model_type": "mistral"})").args[0].value, "4096");
  // merge_patch takes null for removal, so the null is set by hand.
  nlohmann::json root = parse_json(kLlama, "c");
  root["model_type"] = "mistral";
  root["sliding_window"] = nullptr;
  EXPECT_EQ(parse_config(root, "c").sublayers[0].branches[0].name, "attn");
}

TEST(Config, ReadsMamba2Keys) {
  const auto stack = [](const char* patch) {
    return print_stack(patched(kMamba2, patch).sublayers);
  };
  const std::string base = "(mamba2:state=16,head=16,heads=8,groups=2,conv=4,norm_groups=1";
  EXPECT_EQ(stack("{}"), base + ")x2");
  EXPECT_EQ(stack(R"({"time_step_limit": [0.01, 0.5]})"), base + ",dt_min=0.01,dt_max=0.5)x2");
  EXPECT_EQ(stack(R"({"use_bias": true, "use_conv_bias": false})"),
            base + ",bias=1,conv_bias=0)x2");
}

TEST(Config, ReadsBambaKeys) {
  const auto stack = [](const char* patch) {
    return print_stack(patched(kBamba, patch).sublayers);
  };
  const std::string base = stack("{}");
  EXPECT_EQ(base, print_stack(load_config(golden("bamba")).sublayers));
  for (const char* list : {R"("layer_types": ["linear_attention", "full_attention", "mamba"])",
                           R"("layers_block_type": ["mamba", "attention", "mamba"])"}) {
    EXPECT_EQ(stack(fmt::format("{{{}}}", list).c_str()), base) << list;
    EXPECT_EQ(stack(fmt::format(R"({{"attn_layer_indices": null, {}}})", list).c_str()), base);
  }
  EXPECT_EQ(stack(R"({"attn_layer_indices": null})").find("attn"), std::string::npos);
  EXPECT_NE(stack(R"({"attention_bias": true})").find("attn:bias=1,out_bias=1"), std::string::npos);
}

TEST(Config, ReadsFalconH1Keys) {
  const auto stack = [](const char* patch) {
    return print_stack(patched(kFalconH1, patch).sublayers);
  };
  const std::string mamba = "|mamba2:state=16,head=16,heads=6,groups=1,conv=4";
  EXPECT_EQ(stack("{}"),
            "attn:heads=4,kv=2,dim=16,theta=10000" + mamba + ",norm=0 swiglu:hidden=96");
  EXPECT_NE(stack(R"({"mamba_rms_norm": true})").find(mamba + ",norm_before_gate=1 "),
            std::string::npos);
  EXPECT_NE(stack(R"({"mamba_rms_norm": true, "mamba_norm_before_gate": false})").find(mamba + " "),
            std::string::npos);
  EXPECT_NE(stack(R"({"projectors_bias": true})").find(mamba + ",out_bias=1,"), std::string::npos);
  EXPECT_NE(stack(R"({"mamba_proj_bias": true})").find(mamba + ",bias=1,out_bias=0,"),
            std::string::npos);
  const ModelConfig config = load_config(golden("falcon_h1"));
  EXPECT_EQ(config.embedding_scale, 1.5);
  EXPECT_EQ(config.logit_scale, 0.7);
}

TEST(Config, ReadsZamba2Keys) {
  const auto stack = [](const char* patch) {
    return print_stack(patched(kZamba2, patch).sublayers);
  };
  const std::string mamba = "mamba2:state=16,head=16,heads=8,groups=1,conv=4,dt_min=0.001";
  const auto block = [](int share, const std::string& rest) {
    return fmt::format(" shared_block:share={},heads=4,kv=4,dim=32,{}", share, rest);
  };
  const auto both = [&](const std::string& rest) {
    return mamba + block(0, rest) + fmt::format(" ({})x2", mamba) + block(1, rest) + " " + mamba;
  };
  const std::string plain = both("rope=none,hidden=32,rank=8");
  EXPECT_EQ(stack("{}"), plain);
  EXPECT_TRUE(patched(kZamba2, "{}").tied);
  EXPECT_EQ(stack(R"({"hybrid_layer_ids": [1, 3], "layers_block_type": null})"), plain);
  EXPECT_EQ(stack(R"({"hybrid_layer_ids": [1, 3]})"), plain);
  EXPECT_EQ(stack(R"({"use_mem_rope": true, "use_shared_attention_adapter": true,
                      "use_shared_mlp_adapter": false, "add_bias_linear": false})"),
            both("theta=10000,hidden=32,attn_rank=8"));
  const ModelConfig far = patched(kZamba2, R"({"use_mem_rope": true, "use_long_context": true})");
  EXPECT_EQ(far.max_context, 16384);
  // A compiler may round the constant power otherwise than the library does.
  EXPECT_DOUBLE_EQ(SpecOptions(far.sublayers[1].branches[0]).number("theta", 0),
                   10000 * std::pow(8.0, 32.0 / 30.0));
  EXPECT_EQ(stack(R"({"num_mem_blocks": 1})").find("share=1"), std::string::npos);
  EXPECT_EQ(print_stack(load_config(golden("zamba2")).sublayers).find("rope=none"),
            std::string::npos);
}

TEST(Config, RefusesByKey) {
  const std::tuple<const char*, const char*, const char*> kCases[] = {
      {kLlama, R"({"model_type": "gpt2"})",
       "c: model_type is \"gpt2\", want one of braid, llama, mistral, mamba2"},
      {kLlama, R"({"model_type": null})", "c: model_type is missing"},
      {kLlama, R"({"vocab_size": 0})", "c: vocab_size is 0, want an integer from 1 to"},
      {kLlama, R"({"hidden_size": 1e9})", "c: hidden_size is 1"},
      {kLlama, R"({"hidden_size": "64"})", "c: hidden_size is \"64\", want an integer"},
      {kLlama, R"({"num_hidden_layers": 1000000})", "c: num_hidden_layers is 1000000"},
      {kLlama, R"({"num_attention_heads": 5, "num_key_value_heads": 5})",
       "c: num_attention_heads is 5, want a divisor of hidden_size, 64"},
      {kLlama, R"({"num_key_value_heads": 3})",
       "c: num_key_value_heads is 3, want a divisor of num_attention_heads, 4"},
      {kLlama, R"({"intermediate_size": null})", "c: intermediate_size is missing"},
      {kLlama, R"({"hidden_act": "gelu"})", "c: hidden_act is \"gelu\", want \"silu\""},
      {kLlama, R"({"rms_norm_eps": -1})", "c: rms_norm_eps is -1"},
      {kLlama, R"({"rms_norm_eps": Infinity})", "c: rms_norm_eps is inf"},
      {kLlama, R"({"torch_dtype": "int8"})", "c: torch_dtype is \"int8\", want \"float32\""},
      {kLlama, R"({"eos_token_id": 256})", "c: eos_token_id is 256, want an integer from 0 to 255"},
      {kLlama, R"({"quantization_config": {}})", "quantization_config: quant_method is missing"},
      {kLlama, R"({"head_dim": 7})", "rotates 7 values, want a positive even"},
      {kLlama, R"({"rope_scaling": {"type": "su"}})",
       "c: rope_scaling: type is \"su\", want one of default, linear"},
      {kLlama, R"({"rope_scaling": {"type": "linear", "rope_type": "yarn"}})",
       "type is \"linear\""},
      {kLlama, R"({"rope_scaling": {"type": "linear"}})", "rope_scaling: factor is missing"},
      {kLlama, R"({"rope_scaling": {"type": "linear", "factor": 0}})", "factor is 0"},
      {kLlama, R"({"rope_scaling": [1]})", "rope_scaling: holds a list of 1, want an object"},
      {kLlama, R"({"rope_parameters": {"rope_theta": 5}})",
       "c: rope_theta is 10000.0, want 5 as in rope_parameters"},
      {kLlama, R"({"rope_scaling": {"type": "llama3", "factor": 8}})",
       "original_max_position_embeddings is missing"},
      {kLlama, R"({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}})",
       "short_factor is a list of 1, want a list of 8"},
      {kLlama, R"({"model_type": "mistral", "sliding_window": 0})", "c: sliding_window is 0"},
      {kMamba2, R"({"num_heads": 7})",
       "c: num_heads * head_dim is 7 * 16 = 112, want expand * hidden_size = 128"},
      {kMamba2, R"({"n_groups": 3})", "c: n_groups is 3, want a divisor of num_heads, 8"},
      {kMamba2, R"({"time_step_limit": [1, 0]})", "c: time_step_limit is a list of 2"},
      {kMamba2, R"({"time_step_limit": [0, "x"]})", "c: time_step_limit[1] is \"x\""},
      {kBamba, R"({"attn_layer_indices": [3]})",
       "c: attn_layer_indices[0] is 3, want an integer from 0 to 2"},
      {kBamba, R"({"layer_types": ["mamba", "mamba"]})",
       "c: layer_types is a list of 2, want a list of 3, as num_hidden_layers says"},
      {kBamba, R"({"layer_types": ["mamba", "attention", "moe"]})",
       "c: layer_types[2] is \"moe\", want one of mamba, attention"},
      {kBamba, R"({"layer_types": ["mamba", "attention", 3]})",
       "c: layer_types[2] is 3, want one of mamba, attention"},
      {kBamba, R"({"layer_types": ["mamba", "mamba", "mamba"]})",
       "c: layer_types[1] is \"mamba\", want attention as in attn_layer_indices"},
      {kBamba, R"({"mamba_d_head": 15})",
       "c: mamba_n_heads * mamba_d_head is 8 * 15 = 120, want mamba_expand * hidden_size = 128"},
      {kBamba, R"({"mamba_n_groups": 3})",
       "c: mamba_n_groups is 3, want a divisor of mamba_n_heads, 8"},
      {kBamba, R"({"mamba_n_heads": 1000})",
       "c: mamba_n_heads * mamba_d_head is 1000 * 0 = 0, want"},
      {kFalconH1, R"({"mamba_d_ssm": 100})",
       "c: mamba_n_heads * mamba_d_head is 6 * 16 = 96, want mamba_d_ssm = 100"},
      {kFalconH1, R"({"ssm_multipliers": [1, 2, 3]})",
       "c: ssm_multipliers is a list of 3, want a list of 5"},
      {kFalconH1, R"({"mlp_multipliers": 1})", "c: mlp_multipliers is 1, want"},
      {kFalconH1, R"({"key_multiplier": 0})", "c: key_multiplier is 0, want"},
      {kZamba2, R"({"layers_block_type": ["mamba", "attention", "mamba", "hybrid"]})",
       "c: layers_block_type[1] is \"attention\", want one of mamba, hybrid"},
      {kZamba2, R"({"layers_block_type": null})", "c: layers_block_type is missing"},
      {kZamba2, R"({"hybrid_layer_ids": [1, 2]})",
       "c: layers_block_type[2] is \"mamba\", want hybrid as in hybrid_layer_ids"},
      {kZamba2, R"({"hybrid_layer_ids": [4]})",
       "c: hybrid_layer_ids[0] is 4, want an integer from 0 to 3"},
      {kZamba2, R"({"attention_head_dim": 16})",
       "c: num_attention_heads * attention_head_dim is 4 * 16 = 64, want 2 * hidden_size = 128"},
      {kZamba2, R"({"n_mamba_heads": 7})",
       "c: n_mamba_heads * mamba_headdim is 7 * 18 = 126, want mamba_expand * hidden_size = 128"},
      {kZamba2, R"({"use_mem_rope": true, "rope_scaling": {"type": "linear", "factor": 2}})",
       "c: rope_scaling is an object, want plain rotary positions"},
      {kZamba2, R"({"num_mem_blocks": 0})", "c: num_mem_blocks is 0, want an integer from 1"},
      {kZamba2, R"({"hidden_act": "silu"})", "c: hidden_act is \"silu\", want \"gelu\""},
      {kNative, R"({"stack": null})", "c: stack is missing"},
      {kNative, R"({"stack": "(attn"})", "c: stack: column 6: found the end"},
      {kNative, R"({"width": 64})", "c: both hidden_size and width are given"},
      {kNative, R"({"norm": "batch"})", "c: norm is \"batch\", want \"rms\" or \"layer\""},
  };
  for (const auto& [base, patch, want] : kCases) {
    SCOPED_TRACE(patch);
    expect_refused([&, b = base, p = patch] { patched(b, p); }, want);
  }
}

TEST(Config, NativeOnesRoundTrip) {
  const TemporaryFolder folder;
  ModelConfig config = patched(kNative, R"({"norm": "layer", "norm_eps": 1e-6, "dtype": "bfloat16",
    "tie_word_embeddings": true, "embedding_norm": true, "embedding_scale": 8.0, "logit_scale": 0.125,
    "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": [4, 5]})");
  for (const ModelConfig& want :
       {config, load_config(golden("llama_longrope")), load_config(golden("mamba2_g2"))}) {
    write_bytes(folder / "config.json", print_config(want));
    const ModelConfig got = load_config(folder.path());
    EXPECT_EQ(got.model_type, "braid");
    EXPECT_TRUE(got.sublayers == want.sublayers);
    EXPECT_EQ(got.vocab, want.vocab);
    EXPECT_EQ(got.width, want.width);
    EXPECT_EQ(got.norm, want.norm);
    EXPECT_EQ(got.norm_eps, want.norm_eps);
    EXPECT_EQ(got.tied, want.tied);
    EXPECT_EQ(got.embedding_norm, want.embedding_norm);
    EXPECT_EQ(got.embedding_scale, want.embedding_scale);
    EXPECT_EQ(got.logit_scale, want.logit_scale);
    EXPECT_EQ(got.max_context, want.max_context);
    EXPECT_EQ(got.dtype, want.dtype);
    EXPECT_EQ(got.bos, want.bos);
    EXPECT_EQ(got.eos, want.eos);
    EXPECT_EQ(print_config(got), print_config(want));
  }
}

TEST(Config, GenerationConfigDecidesTheEnd) {
  const TemporaryFolder folder;
  write_bytes(folder / "config.json", kLlama);
  write_bytes(folder / "generation_config.json", R"({"eos_token_id": [7, 8, 9]})");
  const ModelConfig config = load_config(folder.path());
  EXPECT_EQ(config.eos, (std::vector<int64_t>{7, 8, 9}));
  EXPECT_EQ(config.bos, 1);
  const std::string_view known[] = {"attn", "swiglu"};
  write_bytes(folder / "config.json", kNative);
  expect_refused([&] { load_config(folder.path(), known); },
                 "stack: column 2: found \"swa:16 swiglu)x2...\", want a sublayer, one of attn");
  expect_refused([&] { load_config(folder / "none"); }, "cannot open");
}

}  // namespace
}  // namespace braid
