#pragma once

#include <cstdint>

namespace braid::bench {

/// A sum that depends on every byte, so that all are read. `bytes` is a multiple of 4096.
float read_all(const uint8_t* data, int64_t bytes);

/// Independent chains of multiply-adds on registers, enough of them to hide the latency.
float f32_multiply_adds(int64_t steps);
double f32_operations_per_step();
/// The same of pair dot products where simd::uses_bf16_dot(), else of float32.
float bf16_multiply_adds(int64_t steps);
double bf16_operations_per_step();

}  // namespace braid::bench
