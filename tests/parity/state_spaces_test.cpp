// Goal: checkpoints as state-spaces/mamba writes them give the logits of the same model under
// transformers' names, and hybrids are refused by key. Method: golden checkpoints with their
// tensors renamed and a config of that dialect.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "braid/core/file.h"
#include "braid/model/checkpoint.h"
#include "braid/model/json.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::golden;

constexpr const char* kMamba1 = R"({"d_model": 64, "n_layer": 3, "vocab_size": 253,
  "ssm_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
  "pad_vocab_size_multiple": 8})";
constexpr const char* kMamba2 = R"({"d_model": 64, "d_intermediate": 0, "n_layer": 3,
  "vocab_size": 256, "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16},
  "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true,
  "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": false})";

// The tensors of a golden checkpoint under the dialect's names. A tied model is saved with its
// head as well.
void write_dialect(const fs::path& from, const fs::path& to, const char* config) {
  const auto file = SafetensorsFile::open(from);
  std::vector<NamedTensor> tensors;
  for (const std::string& name : file.names()) {
    const bool embedding = name == "backbone.embeddings.weight";
    tensors.emplace_back(embedding ? "backbone.embedding.weight" : name, file.tensor(name));
  }
  if (!file.contains("lm_head.weight")) {
    tensors.emplace_back("lm_head.weight", file.tensor("backbone.embeddings.weight"));
  }
  save_safetensors(to / "model.safetensors", tensors);
  write_text(to / "config.json", config);
}

void expect_parity(const std::string& name, const char* config) {
  test::TemporaryFolder folder;
  write_dialect(golden(name), folder.path(), config);
  Context ctx;
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  Stack stack(checkpoint.config());
  stack.load(ctx, checkpoint);
  checkpoint.expect_all_used();
  const auto expected = SafetensorsFile::open(golden(name) / "expected.safetensors");
  const Tensor tokens = expected.tensor("input_ids"), want = expected.tensor("logits");
  const int64_t* ids = tokens.data<int64_t>();
  const std::vector<int32_t> prompt(ids, ids + tokens.count());
  const Tensor got = stack.forward(ctx, prompt, SequenceBatch::single(tokens.count()));
  EXPECT_LE(test::max_error(test::values(got), test::values(want)), 2e-4);
}

TEST(StateSpaces, Mamba1HasTheLogitsOfTheSameModel) { expect_parity("mamba", kMamba1); }
TEST(StateSpaces, Mamba2HasTheLogitsOfTheSameModel) { expect_parity("mamba2_g1", kMamba2); }

ModelConfig patched(const char* base, const char* patch) {
  nlohmann::json root = nlohmann::json::parse(base);
  root.merge_patch(nlohmann::json::parse(patch));
  return parse_config(root, "c");
}

TEST(StateSpaces, ReadsItsKeys) {
  const ModelConfig config = patched(kMamba1, "{}");
  EXPECT_EQ(print_stack(config.sublayers), "(mamba1:state=16,conv=4,inner=128,dt_rank=4)x3");
  EXPECT_EQ(config.vocab, 256);
  EXPECT_EQ(config.norm_eps, 1e-5);
  EXPECT_TRUE(config.tied);
  EXPECT_EQ(patched(kMamba1, R"({"rms_norm": false})").norm, NormKind::kLayer);
  const auto stack = [](const char* base, const char* patch) {
    return print_stack(patched(base, patch).sublayers);
  };
  EXPECT_EQ(stack(kMamba1, R"({"n_layer": 1, "ssm_cfg": {"d_state": 8, "d_conv": 3, "expand": 1,
                                "dt_rank": 5, "bias": true, "conv_bias": false, "dt_min": 0.01}})"),
            "mamba1:state=8,conv=3,bias=1,conv_bias=0,inner=64,dt_rank=5");
  EXPECT_EQ(stack(kMamba1, R"({"n_layer": 1, "ssm_cfg": {"dt_rank": "auto"}})"),
            "mamba1:state=16,conv=4,inner=128,dt_rank=4");
  EXPECT_EQ(stack(kMamba2, R"({"n_layer": 1, "ssm_cfg": {"ngroups": 2, "norm_before_gate": true,
                                "dt_limit": [0.5, 2]}})"),
            "mamba2:state=16,conv=4,head=16,heads=8,groups=2,norm_before_gate=1,dt_min=0.5,"
            "dt_max=2");
}

TEST(StateSpaces, RefusesByKey) {
  struct Case {
    const char *base, *patch, *want;
  };
  const Case kCases[] = {
      {kMamba1, R"({"attn_layer_idx": [1]})",
       "c: attn_layer_idx is a list of 1, want an empty list"},
      {kMamba2, R"({"d_intermediate": 128})", "c: d_intermediate is 128, want 0"},
      {kMamba1, R"({"n_layer": null})", "c: model_type is missing"},
      {kMamba1, R"({"ssm_cfg": {"layer": "Mamba3"}})",
       "c: ssm_cfg: layer is \"Mamba3\", want \"Mamba1\" or \"Mamba2\""},
      {kMamba1, R"({"ssm_cfg": {"headdim": 64}})",
       "c: ssm_cfg: headdim is 64, want an option of this mixer"},
      {kMamba1, R"({"ssm_cfg": {"dt_rank": "big"}})", "c: ssm_cfg: dt_rank is \"big\""},
      {kMamba2, R"({"ssm_cfg": {"headdim": 24}})",
       "c: ssm_cfg: headdim is 24, want a divisor of the inner width, 128"},
      {kMamba2, R"({"ssm_cfg": {"rmsnorm": false}})", "c: ssm_cfg: rmsnorm is false, want true"},
      {kMamba2, R"({"ssm_cfg": {"D_has_hdim": true}})", "D_has_hdim is true, want false"},
      {kMamba2, R"({"ssm_cfg": {"d_ssm": 64}})", "d_ssm is 64, want the inner width, 128"},
      {kMamba2, R"({"ssm_cfg": {"dt_limit": [1]}})", "dt_limit is a list of 1"},
  };
  for (const auto& [base, patch, want] : kCases) {
    SCOPED_TRACE(patch);
    const std::string what = test::refusal([&, b = base, p = patch] { patched(b, p); });
    EXPECT_NE(what.find(want), std::string::npos) << what;
  }
}

}  // namespace
}  // namespace braid
