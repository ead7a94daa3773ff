#include "braid/core/thread_pool.h"
#include "braid/ops/sine/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/sine/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void sine_row(int64_t width, const float* x, const float* frequency, float* y) {
  vec::for_each_vector(static_cast<size_t>(width), [&](auto at, size_t j) {
    at.store(hn::Sin(vec::F32Tag(), hn::Mul(at.load(frequency + j), at.load(x + j))), y + j);
  });
}

// All rows of `width` columns from one on, so that the sum over rows has one order.
void sine_vjp_columns(const SineDims& dims, int64_t width, const float* x, const float* frequency,
                      const float* dy, float* dx, float* dfrequency) {
  vec::for_each_vector(static_cast<size_t>(width), [&](auto at, size_t j) {
    const vec::F32 f = at.load(frequency + j);
    vec::F32 sum = hn::Zero(vec::F32Tag());
    for (int64_t i = 0; i < dims.rows; ++i) {
      const vec::F32 v = at.load(x + i * dims.x_stride + j);
      const vec::F32 g =
          hn::Mul(hn::Cos(vec::F32Tag(), hn::Mul(f, v)), at.load(dy + i * dims.dy_stride + j));
      at.store(hn::Mul(f, g), dx + i * dims.width + j);
      sum = hn::MulAdd(v, g, sum);
    }
    at.store(sum, dfrequency + j);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(sine_row);
HWY_EXPORT(sine_vjp_columns);

void sine(ThreadPool& threads, const SineDims& dims, const float* x, const float* frequency,
          float* y) {
  threads.parallel_for(dims.rows, 1 + 4096 / (dims.width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(sine_row)
      (dims.width, x + i * dims.x_stride, frequency, y + i * dims.width);
    }
  });
}

void sine_vjp(ThreadPool& threads, const SineDims& dims, const float* x, const float* frequency,
              const float* dy, float* dx, float* dfrequency) {
  constexpr int64_t kColumns = 16;
  const int64_t blocks = (dims.width + kColumns - 1) / kColumns;
  threads.parallel_for(blocks, 1 + 256 / (dims.rows + 1), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * kColumns; j < end * kColumns && j < dims.width; j += kColumns) {
      const int64_t width = dims.width - j < kColumns ? dims.width - j : kColumns;
      HWY_DYNAMIC_DISPATCH(sine_vjp_columns)
      (dims, width, x + j, frequency + j, dy + j, dx + j, dfrequency + j);
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
