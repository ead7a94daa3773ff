// Goal: conversions round to nearest, ties to even, for every value there is. Method: all 65,536
// halves and bfloat16s, and the float32 values around every boundary between two of them.

#include "braid/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace braid {
namespace {

float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }
uint32_t to_bits(float x) { return std::bit_cast<uint32_t>(x); }

TEST(BFloat16, EveryValueComesBack) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float x = to_float(BF16{static_cast<uint16_t>(b)});
    ASSERT_EQ(to_bits(x), b << 16);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(to_float(to_bf16(x)))) << b;
    } else {
      ASSERT_EQ(to_bf16(x).bits, b);
    }
  }
}

TEST(BFloat16, RoundsToNearestTiesToEven) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    if ((b & 0x7fffu) >= 0x7f80u) continue;  // infinities and NaN
    const uint32_t low = b << 16;
    const auto up = static_cast<uint16_t>(b + 1);  // away from zero; infinity past the largest
    ASSERT_EQ(to_bf16(from_bits(low | 1)).bits, b);
    ASSERT_EQ(to_bf16(from_bits(low | 0x7fff)).bits, b);
    ASSERT_EQ(to_bf16(from_bits(low | 0x8000)).bits, (b & 1) != 0 ? up : b);
    ASSERT_EQ(to_bf16(from_bits(low | 0x8001)).bits, up);
    ASSERT_EQ(to_bf16(from_bits(low | 0xffff)).bits, up);
  }
}

TEST(BFloat16, NaNStaysNaNWithItsSign) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u, 0x7f80ffffu}) {
    const BF16 rounded = to_bf16(from_bits(bits));
    EXPECT_TRUE(std::isnan(to_float(rounded))) << bits;
    EXPECT_EQ(rounded.bits >> 15, bits >> 31) << bits;
  }
}

TEST(Half, EveryValueByItsDefinition) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float got = half_to_float(static_cast<uint16_t>(h));
    const int exponent = static_cast<int>((h >> 10) & 0x1f), mantissa = static_cast<int>(h & 0x3ff);
    ASSERT_EQ(std::signbit(got), (h >> 15) != 0) << h;
    if (exponent == 31) {
      ASSERT_TRUE(mantissa == 0 ? std::isinf(got) : std::isnan(got)) << h;
      continue;
    }
    const double want =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(std::abs(static_cast<double>(got)), want) << h;
  }
}

TEST(DTypes, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kF32), sizeof(float));
  EXPECT_EQ(size_of(DType::kBF16), sizeof(BF16));
  EXPECT_EQ(size_of(DType::kF16), 2u);
  EXPECT_EQ(size_of(DType::kI64), 8u);
  EXPECT_EQ(size_of(DType::kU8), 1u);
  EXPECT_EQ(to_string(DType::kBF16), "bf16");
  EXPECT_EQ(DTypeOf<int32_t>::value, DType::kI32);
}

}  // namespace
}  // namespace braid
