#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/l2_norm/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/l2_norm/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

HWY_INLINE float head_dot(size_t n, const float* a, const float* b) {
  return vec::sum_over_row(n, [&](auto at, size_t i, vec::F32 sum) {
    return hn::MulAdd(at.load(a + i), at.load(b + i), sum);
  });
}

// One head: y where dy is null, else dx = scale r (dy - x r^2 <dy, x>), r = 1 / |x|.
void l2_norm_head(const L2NormDims& dims, const float* x, const float* dy, float* out) {
  const auto n = static_cast<size_t>(dims.size);
  const float r = 1.0f / std::sqrt(head_dot(n, x, x) + dims.eps);
  const vec::F32 factor = hn::Set(vec::F32Tag(), dims.scale * r);
  if (dy == nullptr) {
    vec::for_each_vector(
        n, [&](auto at, size_t i) { at.store(hn::Mul(factor, at.load(x + i)), out + i); });
    return;
  }
  const vec::F32 along = hn::Set(vec::F32Tag(), r * r * head_dot(n, x, dy));
  vec::for_each_vector(n, [&](auto at, size_t i) {
    const vec::F32 across = hn::NegMulAdd(along, at.load(x + i), at.load(dy + i));
    at.store(hn::Mul(factor, across), out + i);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(l2_norm_head);

void l2_norm(ThreadPool& threads, const L2NormDims& dims, const float* x, float* y) {
  l2_norm_vjp(threads, dims, x, nullptr, y);
}

void l2_norm_vjp(ThreadPool& threads, const L2NormDims& dims, const float* x, const float* dy,
                 float* dx) {
  threads.parallel_for(
      dims.rows * dims.heads, 1 + 8192 / dims.size, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / dims.heads, at = i % dims.heads * dims.size;
          HWY_DYNAMIC_DISPATCH(l2_norm_head)
          (dims, x + row * dims.x_stride + at,
           dy == nullptr ? nullptr : dy + row * dims.dy_stride + at, dx + i * dims.size);
        }
      });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
