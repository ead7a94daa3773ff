#pragma once

#include <cstddef>
#include <cstdint>

#include "braid/core/dtype.h"

namespace braid {

class ThreadPool;

/// A matrix (n outputs, k inputs) in panels of 32 outputs: float32 as [panel][k][32], bfloat16 as
/// [panel][k / 2][32][2], so that one broadcast pair of inputs meets 16 pairs of weights in one dot
/// product instruction. Outputs beyond n and an odd k are filled with zeros.
///
/// On CUDA it is plain instead: element (i, p) lies at i * row + p * column and one of the two
/// is 1.
struct PackedMatrix {
  static constexpr int64_t kPanel = 32;

  int64_t n, k;
  DType dtype;
  int64_t row = 0, column = 0;  // both 0 for panels

  constexpr int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  constexpr int64_t padded_k() const { return dtype == DType::kBF16 ? (k + 1) / 2 * 2 : k; }
  constexpr size_t panel_bytes() const {
    return static_cast<size_t>(padded_k() * kPanel) * size_of(dtype);
  }
  constexpr size_t bytes() const { return static_cast<size_t>(panels()) * panel_bytes(); }
};

/// What is packed: element (row i, column p) lies at i * row + p * column of the source, and one of
/// the two strides is 1.
struct PackDims {
  PackedMatrix to;
  DType from;  // f32, bf16 or f16; a source with row == 1 is f32
  int64_t row, column;
};

/// c (m, n) <- start + a (m, k) b^T with b as above. a[i, p] lies at i * a_row + p * a_column and
/// one of the two is 1; rows of c and start are contiguous, start_row 0 repeats one row (a bias).
struct LinearDims {
  int64_t m;
  PackedMatrix b;
  int64_t a_row, a_column, c_row, start_row;
};

namespace cpu {

/// y <- x in float32, for x of f32, bf16 or f16 at any address.
void widen_row(DType from, const void* x, int64_t count, float* y);

/// Packs panels [begin, end) on the calling thread; false if a value is infinite or NaN.
bool pack_panels(const PackDims& dims, int64_t begin, int64_t end, const void* from, void* to);
/// All panels, in parallel.
bool pack(ThreadPool& threads, const PackDims& dims, const void* from, void* to);
/// out[p] <- element (row, p) of a packed matrix, k values.
void unpack_row(const PackedMatrix& matrix, const void* data, int64_t row, float* out);

/// Bytes of scratch that `linear` wants for these dims and so many threads. With 0 threads: as many
/// as are enough for it and for `linear_on_thread`, for any number of threads, any strides of a,
/// and any m and k up to these.
size_t linear_scratch_bytes(const LinearDims& dims, int threads);

/// An element is one chain of multiply-adds over k (over pairs of k for bfloat16, where a is
/// rounded to bfloat16 where simd::uses_bf16_dot()) from `start`, which may be
/// null (zero) or c: the same whatever m, the tile and the number of threads.
void linear(ThreadPool& threads, const LinearDims& dims, const float* a, const void* b,
            const float* start, float* c, void* scratch);

/// y[j] <- sum_i x[i, j], in the order of i; rows of x are x_row apart.
void column_sum(ThreadPool& threads, int64_t rows, int64_t columns, int64_t x_row, const float* x,
                float* y);

}  // namespace cpu

namespace cuda {

/// As on the CPU, on a queue: `to` is a plain matrix of the source's order, rounded to its dtype.
void pack(void* queue, const PackDims& dims, const void* from, void* to);

/// Bytes of scratch that `linear` wants: a rounded to bfloat16, where b is.
constexpr size_t linear_scratch_bytes(const LinearDims& dims) {
  return dims.b.dtype == DType::kBF16 ? static_cast<size_t>(dims.m * dims.b.k) * sizeof(BF16) : 0;
}
/// A row's bits do not depend on m. For float32 an element is the CPU's chain of multiply-adds; for
/// bfloat16 one algorithm of cuBLASLt, chosen for the weight and never split along k, serves every
/// m. Throws Error(kDevice) where there is none.
void linear(void* queue, const LinearDims& dims, const float* a, const void* b, const float* start,
            float* c, void* scratch);
void column_sum(void* queue, int64_t rows, int64_t columns, int64_t x_row, const float* x,
                float* y);

}  // namespace cuda
}  // namespace braid
