// Goal: parameters are found under their native names whatever the family calls them, damaged
// checkpoints are refused, and a native checkpoint replaces the one before it in one step.
// Method: reference checkpoints of tests/golden, whole and with one tensor changed.
#include "braid/model/checkpoint.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "braid/model/stack_spec.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::golden;
using test::TemporaryFolder;
using test::write_bytes;

using Shapes = std::vector<std::pair<std::string, Shape>>;

// The parameters of a golden Llama or Mistral, whose sublayer is called `mixer`.
Shapes decoder_shapes(const std::string& mixer) {
  Shapes shapes = {{"embedding.weight", {256, 64}}};
  for (int i = 0; i < 6; i += 2) {
    const std::string a = "sublayers." + std::to_string(i) + ".";
    const std::string b = "sublayers." + std::to_string(i + 1) + ".";
    shapes.insert(shapes.end(), {{a + "norm.weight", {64}},
                                 {a + mixer + ".qkv_proj.weight", {128, 64}},
                                 {a + mixer + ".o_proj.weight", {64, 64}},
                                 {b + "norm.weight", {64}},
                                 {b + "swiglu.gate_up.weight", {192, 64}},
                                 {b + "swiglu.down.weight", {64, 96}}});
  }
  shapes.insert(shapes.end(), {{"final_norm.weight", {64}}, {"head.weight", {256, 64}}});
  return shapes;
}

Shapes mamba2_shapes(int64_t groups) {
  const int64_t conv = 128 + 2 * groups * 16;
  Shapes shapes = {{"embedding.weight", {256, 64}}};
  for (int i = 0; i < 3; ++i) {
    const std::string path = "sublayers." + std::to_string(i) + ".";
    const std::string m = path + "mamba2.";
    shapes.insert(shapes.end(), {{path + "norm.weight", {64}},
                                 {m + "in_proj.weight", {128 + conv + 8, 64}},
                                 {m + "conv1d.weight", {conv, 4}},
                                 {m + "conv1d.bias", {conv}},
                                 {m + "dt_bias", {8}},
                                 {m + "A_log", {8}},
                                 {m + "D", {8}},
                                 {m + "norm.weight", {128}},
                                 {m + "out_proj.weight", {64, 128}}});
  }
  shapes.insert(shapes.end(), {{"final_norm.weight", {64}}, {"head.weight", {256, 64}}});
  return shapes;
}

// The parameter whole, in memory.
Tensor gather(const Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
  std::vector<float> out;
  for (const Tensor& source : checkpoint.sources(name, shape)) {
    out.insert(out.end(), source.f32(), source.f32() + source.count());
  }
  return host_tensor(std::move(out), shape);
}

std::vector<NamedTensor> gather_all(const Checkpoint& checkpoint, const Shapes& shapes) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, shape] : shapes) {
    tensors.emplace_back(name, gather(checkpoint, name, shape));
  }
  return tensors;
}

TEST(Checkpoint, NamesEveryTensorOfTheFamilies) {
  for (const char* name : {"llama", "llama_yarn", "mistral", "mamba2_g1", "mamba2_g2"}) {
    SCOPED_TRACE(name);
    const std::string family = name;
    const Checkpoint checkpoint = Checkpoint::open(golden(name));
    const Shapes shapes = family == "mamba2_g1"   ? mamba2_shapes(1)
                          : family == "mamba2_g2" ? mamba2_shapes(2)
                          : family == "mistral"   ? decoder_shapes("swa")
                                                  : decoder_shapes("attn");
    for (const auto& [parameter, shape] : shapes) {
      EXPECT_TRUE(checkpoint.contains(parameter)) << parameter;
      int64_t rows = 0;
      for (const Tensor& source : checkpoint.sources(parameter, shape)) {
        EXPECT_EQ(source.rank(), shape.rank()) << parameter;
        rows += source.rows();
      }
      EXPECT_EQ(rows, shape[0]) << parameter;
    }
    checkpoint.expect_all_used();
    EXPECT_FALSE(checkpoint.contains("sublayers.0.attn.qkv_proj.bias"));
    EXPECT_FALSE(checkpoint.contains("sublayers.99.norm.weight"));
  }
}

TEST(Checkpoint, ConcatenatesInOrder) {
  const Checkpoint checkpoint = Checkpoint::open(golden("llama"));
  const auto file = SafetensorsFile::open(golden("llama"));
  const auto parts = checkpoint.sources("sublayers.2.attn.qkv_proj.weight", {128, 64});
  ASSERT_EQ(parts.size(), 3u);
  const char* names[] = {"q_proj", "k_proj", "v_proj"};
  for (size_t i = 0; i < 3; ++i) {
    const Tensor want =
        file.tensor(std::string("model.layers.1.self_attn.") + names[i] + ".weight");
    EXPECT_EQ(std::memcmp(parts[i].raw(), want.raw(), want.bytes()), 0);
  }
}

TEST(Checkpoint, RefusesWhatDoesNotFit) {
  const Checkpoint checkpoint = Checkpoint::open(golden("llama"));
  expect_refused(
      [&] {
        checkpoint.sources("embedding.weight", {250, 64});
      },
      "\"model.embed_tokens.weight\" has shape (256, 64), want (250, 64)");
  expect_refused(
      [&] {
        checkpoint.sources("sublayers.0.attn.qkv_proj.weight", {130, 64});
      },
      "have 128 rows, want 130");
  expect_refused([&] { checkpoint.sources("sublayers.0.attn.qkv_proj.bias", {128}); },
                 "has no tensor \"model.layers.0.self_attn.q_proj.bias\"");
  expect_refused([&] { checkpoint.sources("sublayers.0.mamba2.D", {8}); },
                 "llama checkpoints have no parameter \"sublayers.0.mamba2.D\"");
  expect_refused([&] { checkpoint.expect_all_used(); }, "is not part of a llama model");
  expect_refused([] { Checkpoint::open("/nonexistent"); }, "/nonexistent: not a directory");
}

// A copy of the golden llama whose tensors `change` has edited.
fs::path edited_llama(const TemporaryFolder& folder,
                      const std::function<void(std::vector<NamedTensor>&)>& change) {
  const auto file = SafetensorsFile::open(golden("llama"));
  std::vector<NamedTensor> tensors;
  for (const std::string& name : file.names()) tensors.emplace_back(name, file.tensor(name));
  change(tensors);
  fs::copy_file(golden("llama") / "config.json", folder / "config.json",
                fs::copy_options::overwrite_existing);
  save_safetensors(folder / "model.safetensors", tensors);
  return folder.path();
}

void load_all(const fs::path& dir) {
  const Checkpoint checkpoint = Checkpoint::open(dir);
  gather_all(checkpoint, decoder_shapes("attn"));
  checkpoint.expect_all_used();
}

TEST(Checkpoint, IgnoresOnlyWhatSaysNothing) {
  const TemporaryFolder folder;
  load_all(edited_llama(folder, [](auto& tensors) {
    tensors.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", test::randn({8}, 1));
  }));
  edited_llama(folder, [](auto& tensors) {
    tensors.emplace_back("model.layers.0.self_attn.q_proj.bias", test::randn({64}, 1));
  });
  expect_refused([&] { load_all(folder.path()); },
                 "\"model.layers.0.self_attn.q_proj.bias\" of shape (64) is not part of");
  edited_llama(folder, [](auto& tensors) {
    tensors.emplace_back("model.layers.3.input_layernorm.weight", test::randn({64}, 1));
  });
  expect_refused([&] { load_all(folder.path()); }, "is not part of a llama model");
}

TEST(Checkpoint, RefusesMisplacedRowsAndIntegers) {
  const TemporaryFolder folder;
  const auto replace = [&](const char* name, const Tensor& tensor) {
    edited_llama(folder, [&](auto& tensors) {
      for (auto& [key, value] : tensors) {
        if (key == name) value = tensor;
      }
    });
  };
  replace("model.layers.0.self_attn.q_proj.weight", test::randn({32, 64}, 1));
  expect_refused([&] { load_all(folder.path()); }, "has shape (32, 64), want (64, 64)");
  replace("model.layers.0.mlp.up_proj.weight", test::randn({96, 63}, 1));
  expect_refused([&] { load_all(folder.path()); }, "has shape (96, 63), want (96, 64)");
  replace("model.norm.weight", host_tensor(std::vector<int64_t>(64), {64}));
  expect_refused([&] { load_all(folder.path()); }, "\"model.norm.weight\" is i64, want f32");
  replace("model.norm.weight", host_tensor(std::vector<float>(1), {}));
  expect_refused([&] { load_all(folder.path()); }, "has shape (), want (64)");
}

TEST(Checkpoint, TakesTheDTypeOfTheTensorsUnlessToldWider) {
  const TemporaryFolder folder;
  const auto dtype = [&](const char* dtype_key, DType stored) {
    const std::string stack = R"("model_type": "braid", "stack": "attn", "vocab_size": 2)";
    write_bytes(folder / "config.json",
                fmt::format(R"({{{}, "hidden_size": 2{}}})", stack, dtype_key));
    SafetensorsWriter writer(folder / "model.safetensors", {{"embedding.weight", {2, 2}, stored}});
    writer.write(test::randn({2, 2}, 1));
    writer.commit();
    return Checkpoint::open(folder.path()).config().dtype;
  };
  EXPECT_EQ(dtype("", DType::kF32), DType::kF32);
  EXPECT_EQ(dtype("", DType::kBF16), DType::kBF16);
  EXPECT_EQ(dtype(R"(, "dtype": "bfloat16")", DType::kBF16), DType::kBF16);
  EXPECT_EQ(dtype(R"(, "dtype": "bfloat16")", DType::kF32), DType::kF32);  // nothing is rounded
  EXPECT_EQ(dtype(R"(, "dtype": "float32")", DType::kBF16), DType::kF32);
}

TEST(Checkpoint, ATiedHeadMayBeThereOrNot) {
  const TemporaryFolder folder;
  Shapes shapes = decoder_shapes("attn");
  shapes.pop_back();
  for (const bool present : {true, false}) {
    edited_llama(folder, [&](auto& tensors) {
      if (!present) std::erase_if(tensors, [](auto& t) { return t.first == "lm_head.weight"; });
    });
    std::string config = test::read_bytes(folder / "config.json");
    const std::string key = "\"tie_word_embeddings\": ";
    config.replace(config.find(key + "false"), key.size() + 5, key + "true");
    write_bytes(folder / "config.json", config);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    gather_all(checkpoint, shapes);
    checkpoint.expect_all_used();
  }
}

TEST(Checkpoint, FingerprintSeesEveryTensorAndTheConfig) {
  const TemporaryFolder folder;
  const uint64_t original = Checkpoint::open(golden("llama")).fingerprint();
  EXPECT_EQ(Checkpoint::open(edited_llama(folder, [](auto&) {})).fingerprint(), original);
  std::set<uint64_t> seen = {original};
  for (size_t i = 0; i < 30; i += 7) {
    edited_llama(folder, [&](auto& tensors) {
      std::vector<float> values(tensors[i].second.f32(),
                                tensors[i].second.f32() + tensors[i].second.count());
      values.back() += 1.0f;
      tensors[i].second = host_tensor(std::move(values), tensors[i].second.shape());
    });
    EXPECT_TRUE(seen.insert(Checkpoint::open(folder.path()).fingerprint()).second) << i;
  }
  EXPECT_NE(Checkpoint::open(golden("llama_yarn")).fingerprint(), original);
}

// The tensors of a block are under its first layer; each place has adapters under its own number.
TEST(Checkpoint, FindsSharedBlocksAndTheirAdapters) {
  const TemporaryFolder folder;
  const std::string list =
      "model.layers.1.shared_transformer.feed_forward.gate_up_proj_adapter_list";
  const auto file = SafetensorsFile::open(golden("zamba2"));
  const Checkpoint checkpoint = Checkpoint::open(golden("zamba2"));
  const auto from = [&](const char* name, const Shape& shape) {
    return checkpoint.sources(name, shape).at(0).raw();
  };
  for (const auto& [sublayer, index] : {std::pair(1, 0), std::pair(6, 2)}) {
    const std::string name =
        fmt::format("sublayers.{}.shared_block.ffn_adapter.in.weight", sublayer);
    const Tensor want = file.tensor(fmt::format("{}.{}.0.weight", list, index));
    EXPECT_EQ(std::memcmp(from(name.c_str(), {8, 64}), want.raw(), want.bytes()), 0);
  }

  std::vector<NamedTensor> tensors;
  for (const std::string& name : file.names()) {
    if (name != list + ".2.1.weight") tensors.emplace_back(name, file.tensor(name));
  }
  fs::copy_file(golden("zamba2") / "config.json", folder / "config.json");
  save_safetensors(folder / "model.safetensors", tensors);
  const Checkpoint damaged = Checkpoint::open(folder.path());
  expect_refused(
      [&] {
        damaged.sources("sublayers.6.shared_block.ffn_adapter.out.weight", {64, 8});
      },
      "has no tensor \"model.layers.1.shared_transformer.feed_forward.gate_up_proj_adap");
}

TEST(SaveCheckpoint, RoundTripsUnderNativeNames) {
  const TemporaryFolder folder;
  const Checkpoint source = Checkpoint::open(golden("mamba2_g2"));
  const Shapes shapes = mamba2_shapes(2);
  const auto tensors = gather_all(source, shapes);
  write_bytes(folder / "t.json", "{\"tokenizer\": 1}");
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    save_checkpoint(folder / "out", {.config = &source.config(),
                                     .tensors = tensors,
                                     .dtype = dtype,
                                     .tokenizer = folder / "t.json"});
    const Checkpoint saved = Checkpoint::open(folder / "out");
    EXPECT_EQ(saved.config().dtype, dtype);
    EXPECT_TRUE(saved.config().sublayers == source.config().sublayers);
    for (const auto& [name, tensor] : tensors) {
      const auto parts = saved.sources(name, tensor.shape());
      ASSERT_EQ(parts.size(), 1u);
      EXPECT_EQ(parts[0].dtype(), tensor.rank() >= 2 ? dtype : DType::kF32) << name;
      // The values of the golden files are exact in bfloat16.
      for (int64_t i = 0; i < tensor.count(); ++i) {
        const float got = parts[0].dtype() == DType::kF32 ? parts[0].f32()[i]
                                                          : to_float(parts[0].data<BF16>()[i]);
        ASSERT_EQ(got, tensor.f32()[i]) << name;
      }
    }
    saved.expect_all_used();
    EXPECT_EQ(test::read_bytes(folder / "out" / "tokenizer.json"), "{\"tokenizer\": 1}");
  }
}

TEST(SaveCheckpoint, KeepsTheOldOneUntilTheNewIsWhole) {
  const TemporaryFolder folder;
  ModelConfig config = Checkpoint::open(golden("llama")).config();
  const std::vector<NamedTensor> tensors = {{"a", test::randn({2, 2}, 1)}};
  CheckpointContents contents{.config = &config, .tensors = tensors};
  save_checkpoint(folder / "out", contents);
  const std::string before = test::read_bytes(folder / "out" / "config.json");

  config.width = 128;
  contents.extra = [](const fs::path&) { fail(ErrorKind::kIo, "the disk is full"); };
  expect_refused([&] { save_checkpoint(folder / "out", contents); }, "the disk is full");
  EXPECT_EQ(test::read_bytes(folder / "out" / "config.json"), before);

  contents.extra = [](const fs::path& dir) { write_bytes(dir / "optimizer.safetensors", "x"); };
  save_checkpoint((folder / "out").string() + "/", contents);
  EXPECT_NE(test::read_bytes(folder / "out" / "config.json"), before);
  EXPECT_TRUE(fs::exists(folder / "out" / "optimizer.safetensors"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);  // nothing is left over

  // Above the largest process id there is: what a killed process would have left.
  fs::create_directories(folder / "out.tmp2000000000");
  fs::create_directories(folder / "out.tmp1x");
  save_checkpoint(folder / "out", contents);
  EXPECT_FALSE(fs::exists(folder / "out.tmp2000000000"));
  EXPECT_TRUE(fs::exists(folder / "out.tmp1x"));
}

TEST(SaveCheckpoint, DoesNotReplaceOtherThings) {
  const TemporaryFolder folder;
  const ModelConfig config = Checkpoint::open(golden("llama")).config();
  const CheckpointContents contents{.config = &config};
  fs::create_directories(folder / "home");
  write_bytes(folder / "home/thesis.txt", "precious");
  expect_refused([&] { save_checkpoint(folder / "home", contents); },
                 "holds \"thesis.txt\", which no checkpoint does");
  EXPECT_TRUE(fs::exists(folder / "home/thesis.txt"));
  fs::rename(folder / "home/thesis.txt", folder / "home/thesis.json");
  expect_refused([&] { save_checkpoint(folder / "home", contents); }, "no config.json");
  expect_refused([&] { save_checkpoint(folder / "home/thesis.json", contents); },
                 "is not a directory");
  fs::create_directories(folder / "empty");
  save_checkpoint(folder / "empty", contents);
  EXPECT_TRUE(fs::exists(folder / "empty/config.json"));
}

}  // namespace
}  // namespace braid
