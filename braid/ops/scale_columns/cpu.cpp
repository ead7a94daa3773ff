#include "braid/core/thread_pool.h"
#include "braid/ops/scale_columns/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/scale_columns/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void scale_rows(const ScaleColumnsDims& dims, int64_t begin, int64_t end, const float* x,
                float* y) {
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x + row * dims.x_stride;  // (width)
    float* to = y + row * dims.width;
    for (int64_t s = 0; s < dims.segments; ++s) {
      const vec::F32 factor = hn::Set(vec::F32Tag(), dims.of[s].factor);
      vec::for_each_vector(static_cast<size_t>(dims.of[s].width), [&](auto at, size_t j) {
        at.store(hn::Mul(at.load(from + j), factor), to + j);
      });
      from += dims.of[s].width;
      to += dims.of[s].width;
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(scale_rows);

void scale_columns(ThreadPool& threads, const ScaleColumnsDims& dims, const float* x, float* y) {
  const int64_t grain = dims.width > 0 ? 1 + 16384 / dims.width : 1;
  threads.parallel_for(dims.rows, grain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(scale_rows)(dims, begin, end, x, y);
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
