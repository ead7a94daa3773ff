#pragma once

#include <cstdint>

#include "braid/core/thread_pool.h"

namespace braid {

struct RopeAnglesDims {
  int64_t rows, pairs;
};

struct RopeDims {
  int64_t rows, heads, head_dim;
  int64_t pairs;     // first + 2 * pairs <= head_dim: 2 * pairs dimensions turn
  int64_t first;     // dimensions of a head before those that turn
  int64_t x_stride;  // elements between rows; y is contiguous
  bool interleaved;
  bool inverse;  // turn by the negative angle
};

namespace cpu {

/// position, table (rows); inv_freq (tables, pairs), factor (tables); cos, sin (rows, pairs)
void rope_angles(ThreadPool& threads, const RopeAnglesDims& dims, const int64_t* position,
                 const int64_t* table, const double* inv_freq, const double* factor, float* cos,
                 float* sin);

/// x, y (rows, heads * head_dim); y may be x if x is contiguous.
void rope(ThreadPool& threads, const RopeDims& dims, const float* x, const float* cos,
          const float* sin, float* y);

}  // namespace cpu
}  // namespace braid
