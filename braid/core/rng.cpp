#include "braid/core/rng.h"

#include <cmath>
#include <numbers>

namespace braid {

std::array<uint32_t, 4> Rng::block(uint64_t index) const {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream_), c3 = static_cast<uint32_t>(stream_ >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

float Rng::uniform(uint64_t index) const {
  return static_cast<float>(block(index)[0] >> 8) * 0x1p-24f;
}

float Rng::normal(uint64_t index) const {
  const auto bits = block(index);
  const double u = (static_cast<double>(bits[0]) + 0.5) * 0x1p-32;  // in (0, 1)
  const double v = static_cast<double>(bits[1]) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

uint64_t Rng::below(uint64_t index, uint64_t bound) const {
  const auto bits = block(index);
  const uint64_t word = (uint64_t{bits[0]} << 32) | bits[1];
  // The upper half of word * bound, by 32-bit limbs.
  const uint64_t low = (word & 0xffffffffu) * (bound & 0xffffffffu);
  const uint64_t middle = (word >> 32) * (bound & 0xffffffffu) + (low >> 32);
  const uint64_t cross = (word & 0xffffffffu) * (bound >> 32) + (middle & 0xffffffffu);
  return (word >> 32) * (bound >> 32) + (middle >> 32) + (cross >> 32);
}

Rng Rng::fork(uint64_t stream) const {
  const auto bits = block(stream ^ 0x5851F42D4C957F2Du);
  return Rng((uint64_t{bits[0]} << 32) | bits[1], (uint64_t{bits[2]} << 32) | bits[3]);
}

}  // namespace braid
