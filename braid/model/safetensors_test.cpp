// Goal: safetensors files are written so that all readers take them, and a hostile or damaged file
// is refused in one line before anything of it is used.
// Method: files built byte by byte; every rule of the format is broken once.
#include "braid/model/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/files.h"
#include "tests/support/numeric.h"

namespace braid {
namespace {

using test::expect_refused;
using test::TemporaryFolder;
using test::write_bytes;

std::string image(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}

SafetensorsHeader parse(std::string_view file) {
  return parse_safetensors(std::as_bytes(std::span(file.data(), file.size())), "f");
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

TEST(Safetensors, ReadsAWellFormedHeader) {
  const std::string text =
      fmt::format("{{{},{},{},{},{}}}  ", entry("b", "U8", "[3]", "[8,11]"),
                  entry("a", "F32", "[2,1]", "[0,8]"), entry("s", "BF16", "[]", "[11,13]"),
                  entry("e", "I64", "[0,5]", "[13,13]"), R"("__metadata__":{"k":"v"})");
  const auto header = parse(image(text, 13));
  ASSERT_EQ(header.entries.size(), 4u);
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_EQ(header.entries[0].shape, (Shape{2, 1}));
  EXPECT_EQ(header.entries[1].dtype, DType::kU8);
  EXPECT_EQ(header.entries[2].shape.rank(), 0);
  EXPECT_EQ(header.entries[3].bytes, 0u);
  EXPECT_EQ(header.metadata.at("k"), "v");
  EXPECT_TRUE(parse(image("{}", 0)).entries.empty());
}

struct Hostile {
  const char* what;
  std::string file;
  const char* want;
};

std::vector<Hostile> hostile_files() {
  const std::string good = entry("a", "F32", "[2]", "[0,8]");
  const auto one = [](const std::string& body, size_t bytes = 8) {
    return image(fmt::format("{{{}}}", body), bytes);
  };
  std::string long_length = one(good);
  long_length[0] = static_cast<char>(long_length[0] + 100);
  std::string huge_length = one(good);
  std::memset(huge_length.data(), 0xff, 8);
  return {
      {"empty", "", "f: has 0 bytes"},
      {"truncated length", "\x10\0\0", "want a safetensors file"},
      {"length past the end", long_length, "is it cut short?"},
      {"length of 2^64-1", huge_length, "18446744073709551615 bytes, want at most 100000000"},
      {"length zero", std::string(8, '\0'), "the header begins with \"\""},
      {"truncated header", one(good).substr(0, 20), "is it cut short?"},
      {"truncated data", one(good, 7), "ends at byte 8 of the data, the file has only 7"},
      {"bytes left over", one(good, 9), "bytes left over"},
      {"header is a list", image("[]", 0), "begins with \"[\", want an object"},
      {"bad JSON", image("{\"a\":", 0), "not JSON"},
      {"text after the header", image("{}x", 0), "not JSON"},
      {"name is not UTF-8", one("\"\xff\xfe\":{}"), "invalid UTF-8"},
      {"repeated name", one(good + "," + good), "key \"a\" is given twice"},
      {"repeated field", one("\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}"), "given twice"},
      {"deep nesting", image("{\"a\":" + std::string(1000, '['), 0), "nested deeper"},
      {"no name", one(entry("", "F32", "[2]", "[0,8]")), "name of 0 bytes"},
      {"long name", one(entry(std::string(5000, 'n'), "F32", "[2]", "[0,8]")),
       "name of 5000 bytes"},
      {"control characters", one(entry("a\\nb", "X", "[2]", "[0,8]")), "tensor \"a\\x0ab\""},
      {"entry is a number", one("\"a\":1"), "tensor \"a\": holds 1, want an object"},
      {"unknown dtype", one(entry("a", "F8_E5M2", "[8]", "[0,8]")),
       "dtype is \"F8_E5M2\", want F64, F32"},
      {"missing dtype", one("\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}"), "dtype is missing"},
      {"missing shape", one("\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}"),
       "shape is missing"},
      {"missing offsets", one("\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"x\":[0,8]}"),
       "data_offsets is missing"},
      {"extra field", one("\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}"),
       "has 4 keys"},
      {"shape is a number", one(entry("a", "F32", "2", "[0,8]")), "shape is 2, want a list"},
      {"negative extent", one(entry("a", "F32", "[-2]", "[0,8]")), "shape[0] is -2"},
      {"fractional extent", one(entry("a", "F32", "[2.0]", "[0,8]")), "shape[0] is 2.0"},
      {"huge extent", one(entry("a", "F32", "[18446744073709551615]", "[0,8]")),
       "shape[0] is 18446744073709551615"},
      {"overflowing shape", one(entry("a", "F32", "[281474976710656,281474976710656]", "[0,8]")),
       "larger than can be"},
      {"shape that wraps to the right size",
       one(entry("a", "U8", "[4294967296,4294967296,8]", "[0,8]")), "larger than can be"},
      {"rank 7", one(entry("a", "F32", "[1,1,1,1,1,1,2]", "[0,8]")),
       "shape is a list of 7, want a list of at most 6"},
      {"three offsets", one(entry("a", "F32", "[2]", "[0,8,9]")), "want two offsets"},
      {"negative offset", one(entry("a", "F32", "[2]", "[-8,0]")), "want two offsets"},
      {"offsets reversed", one(entry("a", "F32", "[2]", "[8,0]")), "want begin <= end"},
      {"offsets past the end", one(entry("a", "F32", "[2]", "[8,16]")), "a gap precedes it"},
      {"offsets that wrap",
       one(entry("a", "F32", "[2]", "[18446744073709551608,18446744073709551615]")),
       "hold 7 bytes, shape (2) of f32 wants 8"},
      {"offset past 2^64 with the header",
       one(entry("a", "U8", "[1]", "[18446744073709551614,18446744073709551615]")),
       "are out of range"},
      {"wrong byte count", one(entry("a", "F32", "[3]", "[0,8]")),
       "data_offsets [0, 8] hold 8 bytes, shape (3) of f32 wants 12"},
      {"overlap", one(good + "," + entry("b", "F32", "[2]", "[4,12]"), 12), "overlaps another"},
      {"same bytes twice", one(good + "," + entry("b", "F32", "[2]", "[0,8]")), "overlaps another"},
      {"gap", one(good + "," + entry("b", "F32", "[2]", "[12,20]"), 20), "a gap precedes it"},
      {"metadata is a list", one(good + ",\"__metadata__\":[]"), "__metadata__: holds a list"},
      {"metadata of numbers", one(good + ",\"__metadata__\":{\"k\":1}"),
       "\"k\" is 1, want a string"},
  };
}

TEST(Safetensors, RefusesHostileFiles) {
  for (const Hostile& hostile : hostile_files()) {
    SCOPED_TRACE(hostile.what);
    expect_refused([&] { parse(hostile.file); }, hostile.want);
  }
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = image(fmt::format("{{{}}}", entry("a", "F32", "[2]", "[0,8]")), 8);
  parse(whole);
  for (size_t n = 0; n < whole.size(); ++n) {
    expect_refused([&] { parse(std::string_view(whole).substr(0, n)); }, "f: ");
  }
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  const TemporaryFolder folder;
  const Tensor a = test::randn({3, 5}, 1), scalar = test::randn({}, 2);
  const Tensor ids = host_tensor<int64_t>({1, 2, 3}, {3});
  const Tensor bytes = host_tensor<uint8_t>({1, 2, 3}, {3});
  const Tensor after = host_tensor<double>({0.5}, {1});  // begins at an odd offset
  const Tensor wide = test::randn({4, 10}, 3);
  const std::vector<NamedTensor> tensors = {{"z", a},
                                            {"scalar", scalar},
                                            {"ids", ids},
                                            {"bytes", bytes},
                                            {"after", after},
                                            {"columns", wide.slice_columns(2, 7)},
                                            {"none", host_tensor<float>({}, {0, 4})}};
  save_safetensors(folder / "f.safetensors", tensors, {{"made", "by \"test\"\n"}});
  const auto file = SafetensorsFile::open(folder / "f.safetensors");
  EXPECT_EQ(file.names().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("made"), "by \"test\"\n");
  for (const auto& [name, tensor] : tensors) {
    const Tensor read = file.tensor(name);
    EXPECT_EQ(read.dtype(), tensor.dtype()) << name;
    EXPECT_EQ(read.shape(), tensor.shape()) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.raw()) % size_of(read.dtype()), 0u) << name;
    for (int64_t row = 0; row < tensor.rows() && tensor.count() > 0; ++row) {
      const Tensor got = read.rank() == 0 ? read : read.slice_rows(row, row + 1);
      const Tensor want = tensor.rank() == 0 ? tensor : tensor.slice_rows(row, row + 1);
      EXPECT_EQ(std::memcmp(got.raw(), want.raw(), want.bytes()), 0) << name;
    }
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensor("z").raw()) % 8, 0u);
  expect_refused([&] { file.tensor("q"); }, "has no tensor \"q\"");
  expect_refused([&] { file.tensor("z", {5, 3}); }, "tensor \"z\" has shape (3, 5), want (5, 3)");
}

TEST(SafetensorsWriter, ConvertsBetweenFloats) {
  const TemporaryFolder folder;
  const Tensor x = test::randn({70, 70}, 4);
  SafetensorsWriter writer(folder / "f.safetensors",
                           {{"narrow", {70, 70}, DType::kBF16}, {"wide", {2}, DType::kF32}});
  writer.write(x);
  writer.write(host_tensor<BF16>({to_bf16(1.5f), to_bf16(-2.0f)}, {2}));
  writer.commit();
  const auto file = SafetensorsFile::open(folder / "f.safetensors");
  const Tensor narrow = file.tensor("narrow");
  for (int64_t i = 0; i < x.count(); ++i) {
    EXPECT_EQ(narrow.data<BF16>()[i].bits, to_bf16(x.f32()[i]).bits);
  }
  EXPECT_EQ(file.tensor("wide").f32()[1], -2.0f);
}

TEST(SafetensorsWriter, RefusesMistakesAndLeavesNothing) {
  const TemporaryFolder folder;
  const std::vector<SafetensorsDeclaration> two = {{"a", {2}, DType::kF32},
                                                   {"b", {1}, DType::kI64}};
  {
    SafetensorsWriter writer(folder / "f.safetensors", two);
    expect_refused([&] { writer.write(test::randn({3}, 1)); },
                   "got a tensor of shape (3), want \"a\" of shape (2)");
    writer.write(test::randn({2}, 1));
    expect_refused([&] { writer.write(test::randn({1}, 1)); }, "tensor \"b\" was declared i64");
    expect_refused([&] { writer.commit(); }, "tensor \"b\" has 0 bytes so far, want 8");
    const int64_t value = 5;
    writer.append(&value, 3);
    writer.append(reinterpret_cast<const char*>(&value) + 3, 5);
    expect_refused([&] { writer.append(&value, 1); }, "1 bytes after the last tensor");
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // never committed
  expect_refused(
      [&] {
        SafetensorsWriter writer(folder / "f.safetensors", {{"a", {1}}, {"a", {1}}});
      },
      "want distinct names");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsShards, AreOneFile) {
  const TemporaryFolder folder;
  const std::vector<NamedTensor> one = {{"a", test::randn({2}, 1)}},
                                 two = {{"b", test::randn({3}, 2)}};
  save_safetensors(folder / "m-1.safetensors", one);
  save_safetensors(folder / "m-2.safetensors", two);
  const auto index = folder / "model.safetensors.index.json";
  const auto open = [&](const char* map) {
    write_bytes(index, std::string("{\"metadata\":{},\"weight_map\":") + map + "}");
    return SafetensorsFile::open(folder.path());
  };
  const auto file = open(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(file.tensor("b").count(), 3);

  const std::pair<const char*, const char*> kHostile[] = {
      {R"({"a":"m-2.safetensors","b":"m-2.safetensors"})",
       "\"a\" should be in \"m-2.safetensors\""},
      {R"({"a":"m-1.safetensors","c":"m-1.safetensors"})", "it is in none of the shards"},
      {R"({"c":"m-3.safetensors"})", "cannot open"},
      {R"({"a":"../m-1.safetensors"})", "in the same directory"},
      {R"({"a":"/etc/x.safetensors"})", "in the same directory"},
      {R"({"a":"m-1.safetensors\u0000.safetensors"})", "in the same directory"},
      {R"({"a":"passwd"})", "in the same directory"},
      {R"({"a":7})", "is in 7, want the name"},
      {R"([])", "weight_map: holds a list of 0"},
      {R"({"a":"m-1.safetensors","a":"m-2.safetensors"})", "\"a\" is given twice"},
  };
  for (const auto& [map, want] : kHostile) {
    SCOPED_TRACE(map);
    expect_refused([&, text = map] { open(text); }, want);
  }
  save_safetensors(folder / "m-2.safetensors", std::vector<NamedTensor>{two[0], one[0]});
  expect_refused([&] { open(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})"); },
                 "tensor \"a\" is also in");
  expect_refused([&] { open(R"({"b":"m-2.safetensors"})"); }, "is not in the index");
}

}  // namespace
}  // namespace braid
