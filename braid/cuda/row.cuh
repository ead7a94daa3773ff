#pragma once

// Rows of float32 four elements at a time, and sums over a block of threads in one fixed order: an
// element is always handled in the same place of the same tree, whether its row is aligned or not.

#include <cuda_runtime.h>

#include <cstdint>

namespace braid::cuda {

/// Elements [4 i, 4 i + 4) of a row; zero past its end. `kAligned` promises 16-byte rows of a width
/// divisible by four.
template <bool kAligned>
__device__ __forceinline__ float4 load4(const float* row, int64_t i, int64_t width) {
  if constexpr (kAligned) {
    return reinterpret_cast<const float4*>(row)[i];
  } else {
    const int64_t j = 4 * i;
    return make_float4(row[j], j + 1 < width ? row[j + 1] : 0.0f, j + 2 < width ? row[j + 2] : 0.0f,
                       j + 3 < width ? row[j + 3] : 0.0f);
  }
}

template <bool kAligned>
__device__ __forceinline__ void store4(float4 v, float* row, int64_t i, int64_t width) {
  if constexpr (kAligned) {
    reinterpret_cast<float4*>(row)[i] = v;
  } else {
    const int64_t j = 4 * i;
    row[j] = v.x;
    if (j + 1 < width) row[j + 1] = v.y;
    if (j + 2 < width) row[j + 2] = v.z;
    if (j + 3 < width) row[j + 3] = v.w;
  }
}

/// Applies f to the four pairs or triples of components.
template <class F>
__device__ __forceinline__ float4 map4(float4 a, F f) {
  return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));
}
template <class F>
__device__ __forceinline__ float4 map4(float4 a, float4 b, F f) {
  return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

/// sum + a.x b.x + ... as one chain.
__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/// The sum of `value` over all threads of the block, in every thread. blockDim.x is a multiple of
/// 32; `scratch` holds 32 floats. All threads take part.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  constexpr unsigned kAll = 0xffffffffu;
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAll, value, lane);
  if (blockDim.x == 32) return value;
  __syncthreads();  // the scratch of an earlier sum has been read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f;
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAll, value, lane);
  return value;
}

/// A block of these threads sums 32 columns, x by column.
constexpr int kSumLanes = 32;
inline dim3 column_block() { return dim3(32, kSumLanes); }

/// The sum of value(i) for 0 <= i < count, in the threads with y == 0: lane y adds up every 32nd,
/// then the lanes are added in order. Many loads are under way at once, which one thread to a
/// column would not have. `scratch` is shared; all threads of the block take part.
template <class F>
__device__ __forceinline__ float column_sum(int64_t count, float (&scratch)[kSumLanes][32],
                                            F value) {
  float sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.y; i < count; i += kSumLanes) sum += value(i);
  scratch[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return 0;
  for (int lane = 1; lane < kSumLanes; ++lane) sum += scratch[lane][threadIdx.x];
  return sum;
}

/// Whether rows of this pointer and stride may be read as float4; a null pointer may.
inline bool aligned_rows(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

/// Threads to a row of `width` elements: a power of two from 32 to 512, each with about 16
/// elements. A function of the width alone.
inline int threads_for_row(int64_t width) {
  int threads = 32;
  while (threads < 512 && threads * 16 < width) threads *= 2;
  return threads;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace braid::cuda
