#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/elementwise/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/elementwise/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void add_row(int64_t width, const float* a, const float* b, float* y) {
  vec::for_each_vector(static_cast<size_t>(width), [&](auto at, size_t j) {
    at.store(hn::Add(at.load(a + j), at.load(b + j)), y + j);
  });
}

void scale_row(int64_t width, float s, const float* a, float* y) {
  const vec::F32 factor = hn::Set(vec::F32Tag(), s);
  vec::for_each_vector(static_cast<size_t>(width), [&](auto at, size_t j) {
    at.store(hn::Mul(at.load(a + j), factor), y + j);
  });
}

void multiply_row(int64_t width, const float* a, const float* b, float* y) {
  vec::for_each_vector(static_cast<size_t>(width), [&](auto at, size_t j) {
    at.store(hn::Mul(at.load(a + j), at.load(b + j)), y + j);
  });
}

float row_product(int64_t width, const float* a, const float* b) {
  return vec::sum_over_row(static_cast<size_t>(width), [&](auto at, size_t j, vec::F32 sum) {
    return hn::MulAdd(at.load(a + j), at.load(b + j), sum);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(add_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(multiply_row);
HWY_EXPORT(row_product);

namespace {

// Calls body(row, first, count) over pieces of rows; a piece is at most 16384 elements.
template <class Body>
void for_each_piece(ThreadPool& threads, const ElementwiseDims& dims, Body&& body) {
  constexpr int64_t kPiece = 16384;
  const int64_t pieces = (dims.width + kPiece - 1) / kPiece;
  const int64_t grain = dims.width > 0 ? 1 + kPiece / dims.width : 1;
  threads.parallel_for(dims.rows * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kPiece;
      body(i / pieces, first, std::min(kPiece, dims.width - first));
    }
  });
}

}  // namespace

void add(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
         float* y) {
  for_each_piece(threads, dims, [&](int64_t row, int64_t first, int64_t count) {
    HWY_DYNAMIC_DISPATCH(add_row)
    (count, a + row * dims.a_stride + first, b + row * dims.b_stride + first,
     y + row * dims.y_stride + first);
  });
}

void scale(ThreadPool& threads, const ElementwiseDims& dims, float s, const float* a, float* y) {
  for_each_piece(threads, dims, [&](int64_t row, int64_t first, int64_t count) {
    HWY_DYNAMIC_DISPATCH(scale_row)
    (count, s, a + row * dims.a_stride + first, y + row * dims.y_stride + first);
  });
}

void multiply(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
              float* y) {
  for_each_piece(threads, dims, [&](int64_t row, int64_t first, int64_t count) {
    HWY_DYNAMIC_DISPATCH(multiply_row)
    (count, a + row * dims.a_stride + first, b + row * dims.b_stride + first,
     y + row * dims.y_stride + first);
  });
}

void scale_rows(ThreadPool& threads, const ElementwiseDims& dims, const float* s, const float* a,
                float* y) {
  for_each_piece(threads, dims, [&](int64_t row, int64_t first, int64_t count) {
    HWY_DYNAMIC_DISPATCH(scale_row)
    (count, s[row], a + row * dims.a_stride + first, y + row * dims.y_stride + first);
  });
}

void row_products(ThreadPool& threads, const ElementwiseDims& dims, const float* a, const float* b,
                  float* y) {
  threads.parallel_for(dims.rows, 1 + 16384 / dims.width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      y[row] = HWY_DYNAMIC_DISPATCH(row_product)(dims.width, a + row * dims.a_stride,
                                                 b + row * dims.b_stride);
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
