#include "braid/model/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace braid {
namespace {

// A float32 that still says on which side of a tie of bfloat16 the value lies: towards zero, with
// the last bit set where something was cut off ("round to odd").
BF16 round_once(double value) {
  const auto near = static_cast<float>(value);
  if (static_cast<double>(near) == value || std::isnan(value)) return to_bf16(near);
  auto bits = std::bit_cast<uint32_t>(near);
  if (std::abs(static_cast<double>(near)) > std::abs(value)) --bits;
  return to_bf16(std::bit_cast<float>(bits | 1));
}

}  // namespace

float fp8_e4m3_to_float(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if ((code & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

Shape ScaleBlock::scales_of(const Shape& matrix) const {
  if (rows <= 0 || columns <= 0 || matrix.rank() != 2) return {0, 0};
  return {(matrix[0] + rows - 1) / rows, (matrix[1] + columns - 1) / columns};
}

Tensor dequantise_fp8(const Tensor& codes, const Tensor& scales, const ScaleBlock& block) {
  check(codes.rank() == 2 && codes.contiguous() && scales.contiguous() &&
            scales.shape() == block.scales_of(codes.shape()),
        "fp8: a matrix {} has scales {}, want {}", to_string(codes.shape()),
        to_string(scales.shape()), to_string(block.scales_of(codes.shape())));
  const int64_t N = codes.dim(0), K = codes.dim(1), across = scales.dim(1);
  std::array<double, 256> values;
  for (size_t c = 0; c < values.size(); ++c) {
    values[c] = static_cast<double>(fp8_e4m3_to_float(static_cast<uint8_t>(c)));
  }
  std::vector<BF16> out(static_cast<size_t>(N * K));
  const auto* from = codes.data<uint8_t>();
  std::array<BF16, 256> scaled;  // of one block
  for (int64_t row = 0; row < N; row += block.rows) {
    for (int64_t column = 0; column < K; column += block.columns) {
      const float scale = scales.f32()[row / block.rows * across + column / block.columns];
      // A product of 4 and 24 bits is exact in a double.
      for (size_t c = 0; c < 256; ++c) {
        scaled[c] = round_once(values[c] * static_cast<double>(scale));
      }
      const int64_t last = std::min(N, row + block.rows);
      const int64_t width = std::min(block.columns, K - column);
      for (int64_t i = row; i < last; ++i) {
        const int64_t at = i * K + column;
        std::transform(from + at, from + at + width, out.begin() + at,
                       [&](uint8_t code) { return scaled[code]; });
      }
    }
  }
  return host_tensor(std::move(out), codes.shape());
}

}  // namespace braid
