// Products with packed weights: against the naive sum, bit for bit between batch sizes and thread
// counts, gradients by complex step, and what packing promises about memory and values.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "braid/core/file.h"
#include "braid/ops/linear/bf16.h"
#include "braid/ops/linear/cases.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/linear/reference.h"
#include "braid/simd/bf16_dot.h"
#include "tests/support/device.h"

namespace braid {
namespace {

using test::Complex;

// Both operands already rounded where the product rounds them, so that only sums differ.
Tensor rounded(Tensor x, DType dtype) {
  if (dtype != DType::kBF16) return x;
  for (int64_t i = 0; i < x.count(); ++i) x.f32()[i] = to_float(to_bf16(x.f32()[i]));
  return x;
}

class Linear : public test::DeviceAndDTypeTest {
 protected:
  Weight make(const Tensor& plain, bool trainable = false) {
    return Weight::make(ctx(), plain, {.packed_dtype = dtype(), .trainable = trainable});
  }
  void check_against_reference(const cases::LinearCase& shape);
};

void Linear::check_against_reference(const cases::LinearCase& shape) {
  const auto [m, n, k] = shape;
  const Tensor x = rounded(test::randn({m, k}, 1), dtype());
  const Tensor plain = rounded(test::randn({n, k}, 2), dtype());
  const Tensor bias = test::randn({n}, 3), residual = test::randn({m, n}, 4);
  const Weight w = make(plain);
  EXPECT_TRUE(w.finite());
  EXPECT_TRUE(test::same_bits(w.to_plain(ctx(), DType::kF32), plain));
  const auto vx = test::values(x), vw = test::values(plain);
  const double tol = test::tolerance(DType::kF32, k + 1);
  std::vector<double> want = reference::linear(m, n, k, vx, vw, test::values(bias));
  expect_near(linear(ctx(), to_device(x), w, to_device(bias)), want, tol, "bias");
  expect_near(linear(ctx(), to_device(x, 5), w, to_device(bias)), want, tol, "strided");
  want = reference::linear(m, n, k, vx, vw, {});
  expect_near(linear(ctx(), to_device(x), w), want, tol, "no bias");
  for (size_t i = 0; i < want.size(); ++i) want[i] += residual.f32()[i];
  expect_near(linear_residual(ctx(), to_device(x), w, to_device(residual, 3)), want, tol,
              "residual");
}

TEST_P(Linear, MatchesTheReference) {
  for (const auto& shape : cases::kLinearOdd) {
    SCOPED_TRACE(testing::Message() << shape.m << " " << shape.n << " " << shape.k);
    everywhere([&] { check_against_reference(shape); });
  }
}

TEST_P(Linear, RowsAreTheSameBitsInEveryBatchOnAnyNumberOfThreads) {
  constexpr int64_t n = 1100, k = 2101;
  const Tensor x = to_device(test::randn({65, k}, 1)), bias = to_device(test::randn({n}, 2));
  const Weight w = make(test::randn({n, k}, 3));
  everywhere([&] {
    const Tensor whole = linear(ctx(), x, w, bias);
    for (const int threads : {1, 3}) {
      Context other({.device = ctx().device(), .threads = threads});
      EXPECT_TRUE(same(linear(other, x, w, bias), whole));
    }
    for (const int64_t piece : {1, 2, 13, 14, 15, 16, 28, 33}) {
      for (int64_t i = 0; i < 65; i += piece) {
        const int64_t end = std::min<int64_t>(65, i + piece);
        ASSERT_TRUE(same(linear(ctx(), x.slice_rows(i, end), w, bias), whole.slice_rows(i, end)))
            << "rows " << i << " to " << end;
      }
    }
  });
}

// On a device the number of rows decides which tiles serve them, and the alignment which loads.
TEST_P(Linear, RowsAreTheSameBitsInLargeAndSmallBatches) {
  for (const auto& [m, n, k] :
       {cases::LinearCase{700, 768, 256}, cases::LinearCase{700, 68, 250},
        cases::LinearCase{600, 4096, 64}, cases::LinearCase{600, 68, 2101}}) {
    const Tensor x = to_device(test::randn({m, k}, 1)), bias = to_device(test::randn({n}, 2));
    const Tensor residual = to_device(test::randn({m, n}, 4));
    const Weight w = make(test::randn({n, k}, 3));
    SCOPED_TRACE(testing::Message() << n << " by " << k);
    everywhere([&] {
      const Tensor whole = linear(ctx(), x, w, bias);
      const Tensor sum = linear_residual(ctx(), x, w, residual);
      int64_t begin = 0;
      for (const int64_t piece : {1, 3, 16, 17, 64, 129, 300}) {
        const int64_t end = begin + piece;
        const Tensor rows = x.slice_rows(begin, end), start = residual.slice_rows(begin, end);
        ASSERT_TRUE(same(linear(ctx(), rows, w, bias), whole.slice_rows(begin, end)))
            << "rows " << begin << " to " << end;
        ASSERT_TRUE(same(linear_residual(ctx(), rows, w, start), sum.slice_rows(begin, end)))
            << "rows " << begin << " to " << end;
        begin = end;
      }
    });
  }
}

TEST_P(Linear, Float32HasTheBitsOfTheHost) {
  if (on_cpu() || dtype() != DType::kF32) GTEST_SKIP() << "for float32 on other devices";
  Context host({.threads = 2});
  for (const auto& [m, n, k] : {cases::LinearCase{5, 33, 63}, cases::LinearCase{130, 100, 769},
                                cases::LinearCase{700, 4000, 40}}) {
    const Tensor x = test::randn({m, k}, 1), plain = test::randn({n, k}, 2);
    const Tensor bias = test::randn({n}, 3);
    const Tensor want = linear(host, x, Weight::make(host, plain), bias);
    EXPECT_TRUE(
        test::same_bits(to_host(linear(ctx(), to_device(x), make(plain), to_device(bias))), want))
        << m << " by " << n << " by " << k;
  }
}

TEST_P(Linear, PartsOfAWeightAreTheRowsOfTheWhole) {
  constexpr int64_t k = 67;
  const Tensor plain = test::randn({101, k}, 1), x = to_device(test::randn({5, k}, 2));
  const Tensor y = linear(ctx(), x, make(plain));
  for (const int64_t cut : {64, 33}) {  // at a panel's edge and inside one
    const Weight parts = Weight::concat_rows(
        ctx(), {plain.slice_rows(0, cut), plain.slice_rows(cut, 101)}, {.packed_dtype = dtype()});
    EXPECT_TRUE(same(linear(ctx(), x, parts), y));
  }
}

TEST_P(Linear, GradientsMatchComplexStep) {
  for (const cases::LinearCase& shape : {cases::LinearCase{3, 5, 7}, {17, 35, 3}}) {
    const int64_t m = shape.m, n = shape.n, k = shape.k;
    const Tensor dy = rounded(test::randn({m, n}, 4), dtype());
    const Tensor host_x = rounded(test::randn({m, k}, 1), dtype()), host_bias = test::randn({n}, 3);
    Tensor x = to_device(host_x), bias = to_device(host_bias);
    Tensor residual = to_device(test::randn({m, n}, 5));
    Tensor plain = rounded(test::randn({n, k}, 2), dtype());
    Tape tape;
    for (Tensor* leaf : {&x, &plain, &bias, &residual}) tape.watch(*leaf);
    Context recorded = ctx().with_tape(&tape);
    const std::vector<double> vdy = test::values(dy), vx = test::values(host_x),
                              vw = test::values(plain), vb = test::values(host_bias);
    const Weight w = make(plain, true);
    const Tensor y = linear(recorded, x, w, bias);
    const Tensor z = linear_residual(recorded, x, w, residual);
    tape.backward(ctx(), {y, z}, {to_device(dy), to_device(dy, 2)});
    const auto run = [&](const std::vector<Complex>& a, const std::vector<Complex>& b,
                         const std::vector<Complex>& c) {
      const auto one = test::dot(reference::linear(m, n, k, a, b, c), vdy);
      return one + test::dot(reference::linear(m, n, k, a, b, {}), vdy);
    };
    const auto cx = test::as<Complex>(vx), cw = test::as<Complex>(vw), cb = test::as<Complex>(vb);
    const double tol = test::tolerance(DType::kF32, m + n);
    expect_near(tape.grad(x), test::complex_step(vx, [&](const auto& v) { return run(v, cw, cb); }),
                tol, "dx");
    expect_near(tape.grad(plain),
                test::complex_step(vw, [&](const auto& v) { return run(cx, v, cb); }), tol, "dw");
    expect_near(tape.grad(bias),
                test::complex_step(vb, [&](const auto& v) { return run(cx, cw, v); }), tol,
                "dbias");
    EXPECT_EQ(read(tape.grad(residual)), vdy);
  }
}

TEST_P(Linear, AFrozenWeightStillGivesTheGradientOfItsInput) {
  Tensor x = to_device(test::randn({4, 9}, 1));
  const Tensor plain = test::randn({37, 9}, 2), dy = test::randn({4, 37}, 3);
  std::vector<Tensor> got;
  for (const bool trainable : {false, true}) {
    Tape tape;
    x.set_grad_id(0);
    tape.watch(x);
    Context recorded = ctx().with_tape(&tape);
    tape.backward(ctx(), {linear(recorded, x, make(plain, trainable))}, {to_device(dy)});
    got.push_back(tape.grad(x));
  }
  EXPECT_TRUE(same(got[0], got[1]));
}

TEST_P(Linear, GradientsDoNotDependOnThreads) {
  // The second is of so many rows on both sides that two threads cut it otherwise than three.
  for (const auto& [m, n, k] : {cases::LinearCase{300, 90, 70}, cases::LinearCase{2051, 460, 33}}) {
    std::vector<Tensor> got;
    for (const int threads : {1, 2, 3}) {
      Context other({.device = ctx().device(), .threads = threads});
      Tensor x = to_device(test::randn({m, k}, 1)), plain = test::randn({n, k}, 2);
      Tape tape;
      tape.watch(x);
      tape.watch(plain);
      Context recorded = other.with_tape(&tape);
      const Weight w = Weight::make(other, plain, {.packed_dtype = dtype(), .trainable = true});
      tape.backward(other, {linear(recorded, x, w)}, {to_device(test::randn({m, n}, 3))});
      got.push_back(to_host(tape.grad(x)));
      got.push_back(to_host(tape.grad(plain)));
    }
    for (size_t i = 2; i < got.size(); ++i) EXPECT_TRUE(test::same_bits(got[i], got[i % 2]));
  }
}

TEST(Bf16, RoundingIsThatOfOneValueEverywhere) {
  std::vector<float> x;
  for (uint32_t i = 0; i < 4099; ++i) x.push_back(std::bit_cast<float>(i * 1048573u));
  for (const uint32_t bits : {0x7f800001u, 0xffffffffu, 0x7f800000u, 0xff800000u, 0x7f7fffffu,
                              0x3f808000u, 0x3f818000u, 0x80000000u, 0x00000001u, 0x007fffffu}) {
    x.push_back(std::bit_cast<float>(bits));
  }
  const auto count = static_cast<int64_t>(x.size());
  const auto want = [](float value) {
    const bool flushed = simd::uses_bf16_dot() && std::fpclassify(value) == FP_SUBNORMAL;
    return to_bf16(flushed ? std::copysign(0.0f, value) : value).bits;
  };
  test::on_every_target([&] {
    std::vector<BF16> one(x.size()), pairs(2 * x.size());
    const std::vector<float> reversed(x.rbegin(), x.rend());
    cpu::round_to_bf16(count, x.data(), one.data());
    cpu::round_pairs_to_bf16(count, x.data(), reversed.data(), pairs.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(one[i].bits, want(x[i])) << x[i];
      ASSERT_EQ(pairs[2 * i].bits, want(x[i])) << x[i];
      ASSERT_EQ(pairs[2 * i + 1].bits, want(reversed[i])) << reversed[i];
    }
  });
}

TEST_P(Linear, RepackFollowsThePlainMatrix) {
  const Tensor x = to_device(test::randn({3, 10}, 1)), plain = test::randn({40, 10}, 2);
  Weight w = make(test::randn({40, 10}, 3), true);
  ctx().api().copy_from_host(w.plain().raw(), plain.raw(), plain.bytes());
  w.repack(ctx());
  const Weight fresh = make(plain, true);
  EXPECT_TRUE(same(linear(ctx(), x, w), linear(ctx(), x, fresh)));
  const Tensor turned = to_host(w.packed_transpose(ctx()));
  const Tensor want = to_host(fresh.packed_transpose(ctx()));
  EXPECT_EQ(std::memcmp(turned.raw(), want.raw(), want.bytes()), 0);
}

INSTANTIATE_TEST_SUITE_P(Devices, Linear, test::kDevicesAndDTypes, test::device_and_dtype_name);

TEST(Weight, SourcesOfEveryDTypeKeepTheirValues) {
  Context ctx({.threads = 2});
  const std::vector<float> want = {1.0f, -2.5f, 0.15625f, 0.0f, 65504.0f, -0.5f};
  std::vector<BF16> b(6);
  for (size_t i = 0; i < 6; ++i) b[i] = to_bf16(want[i]);
  Tensor half(host_tensor(std::vector<int32_t>{static_cast<int32_t>(0xC1003C00u),
                                               static_cast<int32_t>(0x00003100u),
                                               static_cast<int32_t>(0xB8007BFFu)},
                          {3})
                  .storage(),
              0, {2, 3}, DType::kF16, 3);
  const Weight from_half = Weight::make(ctx, half);
  EXPECT_EQ(test::values(from_half.to_plain(ctx, DType::kF32)),
            std::vector<double>(want.begin(), want.end()));
  const Weight from_bf16 = Weight::make(ctx, host_tensor(b, {2, 3}));
  EXPECT_EQ(from_bf16.to_plain(ctx, DType::kF32).f32()[2], 0.15625f);
  EXPECT_EQ(from_bf16.to_plain(ctx, DType::kBF16).data<BF16>()[4].bits, b[4].bits);
}

// Resident bytes of this process's mapping of a file.
int64_t resident_bytes(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  int64_t bytes = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) inside = line.ends_with(path);  // a mapping's first line
    if (inside && line.starts_with("Rss:")) bytes += std::stoll(line.substr(4)) * 1024;
  }
  return bytes;
}

TEST(Weight, PagesOfAMappedFileDoNotStayBesideThePackedForm) {
  Context ctx({.threads = 2});
  constexpr int64_t n = 1500, k = 1001;
  constexpr size_t kOffset = 3;  // a file may put a matrix at any address
  const Tensor plain = test::randn({n, k}, 1), x = test::randn({3, k}, 2);
  const auto path =
      std::filesystem::temp_directory_path() / ("braid_weight_" + std::to_string(::getpid()));
  {
    std::ofstream file(path, std::ios::binary);
    file.write("abc", kOffset);
    file.write(reinterpret_cast<const char*>(plain.raw()),
               static_cast<std::streamsize>(plain.bytes()));
  }
  {
    const auto file = MappedFile::open(path);
    const Weight w = Weight::make(ctx, file->tensor(kOffset, {n, k}, DType::kF32));
    EXPECT_LT(resident_bytes(path), 256 << 10);
    EXPECT_TRUE(test::same_bits(linear(ctx, x, w), linear(ctx, x, Weight::make(ctx, plain))));
    // The count above can fail: comparing brings the pages back.
    EXPECT_EQ(std::memcmp(file->bytes().data() + kOffset, plain.raw(), plain.bytes()), 0);
    EXPECT_GT(resident_bytes(path), 4 << 20);
  }
  std::filesystem::remove(path);
}

TEST(Weight, KeepsItsTransposeWhereItIsUsedBothWays) {
  Context ctx({.threads = 2});
  const Tensor plain = test::randn({70, 45}, 1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Weight once = Weight::make(ctx, plain, {.packed_dtype = dtype});
    const Weight kept = Weight::make(ctx, plain, {.packed_dtype = dtype, .both_ways = true});
    const Tensor want = once.packed_transpose(ctx), got = kept.packed_transpose(ctx);
    ASSERT_EQ(got.bytes(), want.bytes());
    EXPECT_EQ(std::memcmp(got.raw(), want.raw(), got.bytes()), 0);
    EXPECT_EQ(kept.packed_transpose(ctx).raw(), got.raw());
    EXPECT_NE(once.packed_transpose(ctx).raw(), want.raw());
  }
}

TEST(Weight, ReportsValuesThatAreNotFinite) {
  Context ctx({.threads = 2});
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Tensor plain = test::randn({70, 9}, 1);
      EXPECT_TRUE(Weight::make(ctx, plain, {.packed_dtype = dtype}).finite());
      plain.f32()[plain.count() - 1] = bad;
      EXPECT_FALSE(Weight::make(ctx, plain, {.packed_dtype = dtype}).finite());
      EXPECT_FALSE(Weight::make(ctx, plain, {.packed_dtype = dtype, .trainable = true}).finite());
    }
  }
}

TEST(Weight, RefusesWhatDoesNotFit) {
  Context ctx({.threads = 1});
  const Weight w = Weight::make(ctx, test::randn({4, 3}, 1));
  EXPECT_THROW(linear(ctx, test::randn({2, 4}, 1), w), Error);
  EXPECT_THROW(linear(ctx, test::randn({2, 3}, 1), w, test::randn({3}, 1)), Error);
  EXPECT_THROW(linear_residual(ctx, test::randn({2, 3}, 1), w, test::randn({2, 3}, 1)), Error);
  EXPECT_THROW(linear(ctx, test::randn({2, 3}, 1), Weight{}), Error);
  EXPECT_THROW(Weight::make(ctx, test::randn({4}, 1)), Error);
  EXPECT_THROW(Weight::make(ctx, host_tensor(std::vector<int32_t>(4), {2, 2})), Error);
  EXPECT_THROW(Weight::concat_rows(ctx, {test::randn({4, 3}, 1), test::randn({4, 2}, 1)}), Error);
}

}  // namespace
}  // namespace braid
