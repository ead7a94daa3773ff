// What the two passes of the chunked form share: a worker's matrices, the triangular systems.
// Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_GATED_DELTA_RULE_DELTA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_GATED_DELTA_RULE_DELTA_INL_H_
#undef BRAID_OPS_GATED_DELTA_RULE_DELTA_INL_H_
#else
#define BRAID_OPS_GATED_DELTA_RULE_DELTA_INL_H_
#endif

#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/gated_delta_rule/scratch.h"
#include "braid/ops/ssd/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

inline constexpr int64_t kSolveRows = 14;  // solved against each other; the rest is a product

// x <- (I - a)^-1 x, a strictly lower (Q, Q), x (count, n).
inline void solve_lower(int64_t count, int64_t n, const float* a, int64_t stride, float* x,
                        int64_t x_row) {
  for (int64_t first = 0; first < count; first += kSolveRows) {
    const int64_t rows = std::min(kSolveRows, count - first);
    simd::GemmDims product{.m = rows,
                           .n = n,
                           .k = first,
                           .a_row = stride,
                           .a_col = 1,
                           .b_row = x_row,
                           .c_row = x_row,
                           .start_row = x_row};
    gemm(product, a + first * stride, x, x + first * x_row, x + first * x_row);
    product.m = 1;
    for (int64_t i = first + 1; i < first + rows; ++i) {
      product.k = i - first;
      gemm(product, a + i * stride + first, x + first * x_row, x + i * x_row, x + i * x_row);
    }
  }
}

// x <- (I - a)^-T x
inline void solve_lower_transposed(int64_t count, int64_t n, const float* a, int64_t stride,
                                   float* x, int64_t x_row) {
  for (int64_t last = count; last > 0; last -= std::min(kSolveRows, last)) {
    const int64_t first = std::max<int64_t>(0, last - kSolveRows);
    simd::GemmDims product{.m = last - first,
                           .n = n,
                           .k = count - last,
                           .a_row = 1,
                           .a_col = stride,
                           .b_row = x_row,
                           .c_row = x_row,
                           .start_row = x_row};
    gemm(product, a + last * stride + first, x + last * x_row, x + first * x_row,
         x + first * x_row);
    product.m = 1;
    for (int64_t j = last - 2; j >= first; --j) {
      product.k = last - 1 - j;
      gemm(product, a + (j + 1) * stride + j, x + (j + 1) * x_row, x + j * x_row, x + j * x_row);
    }
  }
}

// y_i <- scale[i] y_i
HWY_INLINE void scale_in_place(int64_t rows, int64_t n, const float* scale, float* y,
                               int64_t y_row) {
  scale_rows(rows, n, scale, y, y_row, y, y_row);
}

// k^T, k k^T and q k^T of one key head.
inline void delta_scores(const GatedDeltaDims& dims, const GatedDeltaOperands& in,
                         const SsdChunk& cell, int64_t g, const DeltaMatrices& at) {
  const int64_t K = dims.key_dim;
  const float* q = in.q + cell.begin * dims.q_stride + g * K;
  const float* k = in.k + cell.begin * dims.k_stride + g * K;
  simd::transpose(cell.count, K, k, dims.k_stride, at.kt, at.q);
  simd::GemmDims product{.m = cell.count,
                         .n = cell.count,
                         .k = K,
                         .a_row = dims.k_stride,
                         .a_col = 1,
                         .b_row = at.q,
                         .c_row = at.q};
  gemm(product, k, at.kt, nullptr, at.kk);
  product.a_row = dims.q_stride;
  gemm(product, q, at.kt, nullptr, at.qk);
}

// decay, m = decay (q k^T) and a = -beta decay (k k^T) below the diagonal, of one head.
inline void delta_systems(const GatedDeltaDims& dims, const GatedDeltaOperands& in,
                          const SsdChunk& cell, int64_t h, const DeltaMatrices& at,
                          Decays& decays) {
  decays.set({.heads = dims.heads}, cell, h, in.log_decay);
  mask(cell.count, at.q, decays, at.qk, at.decay, at.m);
  for (int64_t i = 0; i < cell.count; ++i) {
    const V factor = hn::Set(D(), -in.beta[(cell.begin + i) * dims.heads + h]);
    const int64_t row = i * at.q;
    sv::for_each_vector(static_cast<size_t>(cell.count), [&](auto access, size_t j) {
      const V product = hn::Mul(access.load(at.decay + row + j), access.load(at.kk + row + j));
      access.store(hn::Mul(factor, product), at.a + row + j);
    });
    at.a[row + i] = 0;
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
