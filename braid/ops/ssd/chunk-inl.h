// What the kernels of the chunked form share. Compiled once per instruction set: include after
// hwy/foreach_target.h.

#if defined(BRAID_OPS_SSD_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_SSD_CHUNK_INL_H_
#undef BRAID_OPS_SSD_CHUNK_INL_H_
#else
#define BRAID_OPS_SSD_CHUNK_INL_H_
#endif

#include "braid/ops/ssd/scan-inl.h"
#include "braid/ops/ssd/scan.h"
#include "braid/simd/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

using simd::gemm;

// The running sums of log_decay of one head inside a chunk, as a sum of two floats, so that
// exp(a_i - a_j) is as exact for a late pair as for an early one; and the decay from the start of
// the chunk to token t, and from token t to its end.
struct Decays {
  float *high, *low, *from_start, *to_end;
  float total = 1;

  Decays(float* base, int64_t chunk)
      : high(base), low(base + chunk), from_start(base + 2 * chunk), to_end(base + 3 * chunk) {}

  void set(const SsdDims& dims, const SsdChunk& cell, int64_t h, const float* log_decay) {
    double sum = 0;
    for (int64_t t = 0; t < cell.count; ++t) {
      sum += log_decay[(cell.begin + t) * dims.heads + h];
      high[t] = static_cast<float>(sum);
      low[t] = static_cast<float>(sum - high[t]);
    }
    for (int64_t t = 0; t < cell.count; ++t) {
      to_end[t] = static_cast<float>(sum - high[t] - low[t]);
    }
    const D d;
    for (int64_t t = 0; t < cell.count; t += lanes()) {
      const int64_t n = cell.count - t;
      store(sv::exp(load(high + t, n)), from_start + t, n);
      store(sv::exp(load(to_end + t, n)), to_end + t, n);
    }
    total = hn::GetLane(sv::exp(hn::Set(d, static_cast<float>(sum))));
  }
};

// y (rows, n) <- scale[i] x
HWY_INLINE void scale_rows(int64_t rows, int64_t n, const float* scale, const float* x,
                           int64_t x_row, float* y, int64_t y_row) {
  for (int64_t i = 0; i < rows; ++i) {
    const V factor = hn::Set(D(), scale[i]);
    const float* from = x + i * x_row;
    float* to = y + i * y_row;
    sv::for_each_vector(static_cast<size_t>(n), [&](auto access, size_t j) {
      access.store(hn::Mul(factor, access.load(from + j)), to + j);
    });
  }
}

// Rows of a triangle that are multiplied at once; two tiles of the product.
inline constexpr int64_t kTriangleRows = 28;

// decay (Q, Q) <- exp(a_i - a_j) where j <= i, and m <- decay cb there, 0 elsewhere. The mask comes
// before the exponential: above the diagonal it could overflow.
inline void mask(int64_t count, int64_t stride, const Decays& a, const float* cb, float* decay,
                 float* m) {
  const D d;
  for (int64_t i = 0; i < count; ++i) {
    const V high = hn::Set(d, a.high[i]), low = hn::Set(d, a.low[i]);
    for (int64_t j = 0; j < count; j += lanes()) {
      const int64_t n = count - j, at = i * stride + j;
      const auto keep = hn::FirstN(d, static_cast<size_t>(std::clamp<int64_t>(i + 1 - j, 0, n)));
      const V gap = hn::Add(hn::Sub(high, load(a.high + j, n)), hn::Sub(low, load(a.low + j, n)));
      const V factor = hn::IfThenElseZero(keep, sv::exp(hn::IfThenElseZero(keep, gap)));
      store(factor, decay + at, n);
      store(hn::Mul(factor, load(cb + at, n)), m + at, n);
    }
  }
}

// c_i += sum_{j <= i} m_ij b_j,  b and c (Q, n).
inline void lower_times(int64_t count, int64_t n, const float* m, int64_t stride, const float* b,
                        int64_t b_row, float* c, int64_t c_row) {
  for (int64_t i = 0; i < count; i += kTriangleRows) {
    const int64_t rows = std::min(kTriangleRows, count - i);
    gemm({.m = rows,
          .n = n,
          .k = i + rows,
          .a_row = stride,
          .a_col = 1,
          .b_row = b_row,
          .c_row = c_row,
          .start_row = c_row},
         m + i * stride, b, c + i * c_row, c + i * c_row);
  }
}

// c_j += sum_{i >= j} m_ij b_i
inline void lower_transposed_times(int64_t count, int64_t n, const float* m, int64_t stride,
                                   const float* b, int64_t b_row, float* c, int64_t c_row) {
  for (int64_t j = 0; j < count; j += kTriangleRows) {
    const int64_t rows = std::min(kTriangleRows, count - j);
    gemm({.m = rows,
          .n = n,
          .k = count - j,
          .a_row = 1,
          .a_col = stride,
          .b_row = b_row,
          .c_row = c_row,
          .start_row = c_row},
         m + j * stride + j, b + j * b_row, c + j * c_row, c + j * c_row);
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
