// Goal: matrices stored as fp8 with a scale a block become the numbers that were meant, rounded
// once, and what does not fit is refused in one line.
// Method: all codes by the format's formula, an exact product at a tie of bfloat16, odd sizes
// against the definition, and a checkpoint written here byte by byte.
#include "braid/model/fp8.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "braid/model/checkpoint.h"
#include "braid/model/stack.h"
#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using test::expect_refused;
using test::TemporaryFolder;
using test::write_bytes;

TEST(Fp8, EveryCodeIsExact) {
  std::vector<uint8_t> codes;
  for (int c = 0; c < 256; ++c) codes.push_back(static_cast<uint8_t>(c));
  const Tensor values =
      dequantise_fp8(host_tensor(codes, {2, 128}), host_tensor(std::vector<float>(2, 1.0f), {2, 1}),
                     {.rows = 1, .columns = 128});
  ASSERT_EQ(values.dtype(), DType::kBF16);
  for (const uint8_t code : codes) {
    const double sign = code < 128 ? 1 : -1, e = code / 8 % 16, m = code % 8;
    const double want = e == 0 ? m / 8 * std::exp2(-6) : (1 + m / 8) * std::exp2(e - 7);
    const float got = fp8_e4m3_to_float(code), stored = to_float(values.data<BF16>()[code]);
    if (e == 15 && m == 7) {
      EXPECT_TRUE(std::isnan(got) && std::isnan(stored)) << int{code};
    } else {
      EXPECT_EQ(static_cast<double>(got), sign * want) << int{code};
      EXPECT_EQ(static_cast<double>(stored), sign * want) << int{code};
      EXPECT_EQ(std::signbit(stored), sign < 0) << int{code};
    }
  }
  EXPECT_EQ(fp8_e4m3_to_float(0x7E), 448.0f);
}

// A product just above the middle of two bfloat16 values, which float32 would round onto it.
TEST(Fp8, RoundsOnce) {
  const double middle = 1 + std::exp2(-8);
  int seen = 0;
  for (uint8_t code = 0x30; code < 0x40; ++code) {
    const double value = fp8_e4m3_to_float(code);
    auto scale = static_cast<float>(middle / value);
    if (value * scale <= middle) scale = std::nextafter(scale, 2.0f);
    if (static_cast<float>(value * scale) != static_cast<float>(middle)) continue;
    ++seen;
    const auto dequantised = [&](uint8_t c, float s) {
      return to_float(dequantise_fp8(host_tensor(std::vector<uint8_t>{c}, {1, 1}),
                                     host_tensor(std::vector<float>{s}, {1, 1}),
                                     {.rows = 128, .columns = 128})
                          .data<BF16>()[0]);
    };
    EXPECT_EQ(dequantised(code, scale), 1.0f + std::exp2(-7.0f));
    EXPECT_EQ(dequantised(code | 0x80, scale), -1.0f - std::exp2(-7.0f));
  }
  EXPECT_GT(seen, 0);
}

TEST(Fp8, TheLastBlocksMayBePartial) {
  const ScaleBlock block{.rows = 16, .columns = 10};
  for (const auto& [n, k] : {std::pair{1, 1}, std::pair{16, 10}, std::pair{17, 11},
                             std::pair{33, 29}, std::pair{15, 40}}) {
    std::vector<uint8_t> codes(static_cast<size_t>(n * k));
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37 % 127);
    const int64_t across = (k + 9) / 10;
    const Tensor scales = test::randn({(n + 15) / 16, across}, 1);
    const Tensor y = dequantise_fp8(host_tensor(codes, {n, k}), scales, block);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const float product = fp8_e4m3_to_float(codes[static_cast<size_t>(i * k + j)]) *
                              scales.f32()[i / 16 * across + j / 10];
        EXPECT_NEAR(to_float(y.data<BF16>()[i * k + j]), product, std::abs(product) * 0x1p-8);
      }
    }
    EXPECT_THROW(dequantise_fp8(host_tensor(codes, {n, k}), test::randn({n + 1, across}, 1), block),
                 Error);
  }
}

// A Llama whose matrices are fp8, as files with F8_E4M3 are: written as U8, then renamed.
class Fp8Checkpoint {
 public:
  Fp8Checkpoint() {
    const fs::path golden = test::golden("llama");
    config = nlohmann::json::parse(test::read_bytes(golden / "config.json"));
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {40, 24}}};
    const SafetensorsFile file = SafetensorsFile::open(golden);
    for (const std::string& name : file.names()) {
      const Tensor tensor = file.tensor(name);
      if (name.find("_proj.weight") == std::string::npos) {
        tensors.emplace_back(name, tensor);
        continue;
      }
      std::vector<uint8_t> codes(static_cast<size_t>(tensor.count()));
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = static_cast<uint8_t>(i * 101 % 256 & 0xF7);
      tensors.emplace_back(name, host_tensor(codes, tensor.shape()));
      const Shape blocks{(tensor.dim(0) + 39) / 40, (tensor.dim(1) + 23) / 24};
      tensors.emplace_back(name + "_scale_inv", test::randn(blocks, 3, 0.01f));
    }
  }
  Tensor& tensor(const std::string& name) {
    return std::ranges::find(tensors, name, &NamedTensor::first)->second;
  }
  void write() const {
    write_bytes(folder / "config.json", config.dump());
    save_safetensors(folder / "model.safetensors", tensors);
    const std::string file = test::read_bytes(folder / "model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    std::string header = file.substr(8, length);
    for (size_t at = 0; (at = header.find("\"U8\"", at)) != std::string::npos;) {
      header.replace(at, 4, "\"F8_E4M3\"");
    }
    const uint64_t longer = header.size();
    std::string prefix(8, '\0');
    std::memcpy(prefix.data(), &longer, sizeof longer);
    write_bytes(folder / "model.safetensors", prefix + header + file.substr(8 + length));
  }
  void load() const {
    write();
    Context ctx;
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    Stack stack(checkpoint.config());
    stack.load(ctx, checkpoint);
  }

  TemporaryFolder folder;
  nlohmann::json config;
  std::vector<NamedTensor> tensors;
};

constexpr const char* kDown = "model.layers.1.mlp.down_proj.weight";              // (64, 96)
constexpr const char* kScales = "model.layers.1.mlp.down_proj.weight_scale_inv";  // (2, 4)

TEST(Fp8, IsReadFromACheckpoint) {
  Fp8Checkpoint fp8;
  EXPECT_NO_THROW(fp8.load());
  const Checkpoint checkpoint = Checkpoint::open(fp8.folder.path());
  EXPECT_EQ(checkpoint.config().fp8_block, (ScaleBlock{.rows = 40, .columns = 24}));
  const auto sources = checkpoint.sources("sublayers.3.swiglu.down.weight", {64, 96});
  ASSERT_EQ(sources.size(), 1u);
  const Tensor want =
      dequantise_fp8(fp8.tensor(kDown), fp8.tensor(kScales), {.rows = 40, .columns = 24});
  EXPECT_TRUE(test::same_bits(sources[0], want));
  EXPECT_EQ(checkpoint.sources("sublayers.3.swiglu.gate_up.weight", {192, 64}).size(), 2u);
}

TEST(Fp8, RefusesWhatDoesNotFit) {
  const auto refused = [](const char* want, auto&& edit) {
    Fp8Checkpoint fp8;
    edit(fp8);
    expect_refused([&] { fp8.load(); }, want);
  };
  refused("weight_scale_inv\" has shape (2, 3), want (2, 4)", [](Fp8Checkpoint& c) {
    c.tensor(kScales) = test::randn({2, 3}, 1);
  });
  refused("has no tensor \"model.layers.1.mlp.down_proj.weight_scale_inv\"", [](Fp8Checkpoint& c) {
    std::erase_if(c.tensors, [](const NamedTensor& t) { return t.first == kScales; });
  });
  refused("weight_scale_inv\" is i32, want f32", [](Fp8Checkpoint& c) {
    c.tensor(kScales) = host_tensor(std::vector<int32_t>(8, 1), {2, 4});
  });
  refused("holds a NaN or an infinity", [](Fp8Checkpoint& c) {
    c.tensor(kDown) = host_tensor(std::vector<uint8_t>(64 * 96, 0xFF), {64, 96});
  });
  refused("holds a NaN or an infinity", [](Fp8Checkpoint& c) {
    c.tensor(kScales) = host_tensor(std::vector<float>(8, 3e38f), {2, 4});
  });
  refused("is fp8, want a matrix and a config with weight_block_size",
          [](Fp8Checkpoint& c) { c.config.erase("quantization_config"); });
  refused("is not part of a llama model", [](Fp8Checkpoint& c) {
    c.tensors.emplace_back("model.norm.weight_scale_inv", test::randn({1, 1}, 1));
  });
  refused("is fp8, want a matrix", [](Fp8Checkpoint& c) {
    c.tensor("model.norm.weight") = host_tensor(std::vector<uint8_t>(64, 1), {64});
  });
  const auto config = [&](const char* key, const nlohmann::json& value, const char* want) {
    refused(want, [&](Fp8Checkpoint& c) { c.config["quantization_config"][key] = value; });
  };
  config("quant_method", "gptq", "quant_method is \"gptq\", want \"fp8\"");
  config("fmt", "e5m2", "fmt is \"e5m2\", want \"e4m3\"");
  config("weight_block_size", {128}, "weight_block_size is a list of 1, want two integers");
  config("weight_block_size", {128, 0}, "weight_block_size");
  config("weight_block_size", nullptr, "weight_block_size is missing, want two integers");
}

}  // namespace
}  // namespace braid
