#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/softplus_decay/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/softplus_decay/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void softplus_decay_row(int64_t heads, const float* x, const float* bias, const float* rate,
                        float* y) {
  vec::for_each_vector(static_cast<size_t>(heads), [&](auto at, size_t h) {
    const vec::F32 soft = vec::softplus(hn::Add(at.load(x + h), at.load(bias + h)));
    at.store(hn::Mul(at.load(rate + h), soft), y + h);
  });
}

void softplus_decay_row_vjp(int64_t heads, const float* x, const float* bias, const float* rate,
                            const float* dy, float* dx) {
  vec::for_each_vector(static_cast<size_t>(heads), [&](auto at, size_t h) {
    const vec::F32 slope = vec::sigmoid(hn::Add(at.load(x + h), at.load(bias + h)));
    at.store(hn::Mul(at.load(dy + h), hn::Mul(at.load(rate + h), slope)), dx + h);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(softplus_decay_row);
HWY_EXPORT(softplus_decay_row_vjp);

void softplus_decay(ThreadPool& threads, const SoftplusDecayDims& dims, const float* x,
                    const float* a_log, const float* bias, float* rate, float* y) {
  for (int64_t h = 0; h < dims.heads; ++h) {
    rate[h] = static_cast<float>(-std::exp(static_cast<double>(a_log[h])));
  }
  threads.parallel_for(dims.tokens, 1 + 4096 / dims.heads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      HWY_DYNAMIC_DISPATCH(softplus_decay_row)
      (dims.heads, x + t * dims.x_stride, bias, rate, y + t * dims.heads);
    }
  });
}

void softplus_decay_vjp(ThreadPool& threads, const SoftplusDecayDims& dims, const float* x,
                        const float* bias, const float* rate, const float* y, const float* dy,
                        float* dx, float* d_a_log, float* d_bias) {
  const int64_t heads = dims.heads;
  threads.parallel_for(dims.tokens, 1 + 4096 / heads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      HWY_DYNAMIC_DISPATCH(softplus_decay_row_vjp)
      (heads, x + t * dims.x_stride, bias, rate, dy + t * dims.dy_stride, dx + t * heads);
    }
  });
  threads.parallel_for(
      heads, 1 + 16384 / std::max<int64_t>(1, dims.tokens), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
          double of_rate = 0, of_bias = 0;
          for (int64_t t = 0; t < dims.tokens; ++t) {
            of_rate += static_cast<double>(dy[t * dims.dy_stride + h]) * y[t * heads + h];
            of_bias += dx[t * heads + h];
          }
          d_a_log[h] = static_cast<float>(of_rate);
          d_bias[h] = static_cast<float>(of_bias);
        }
      });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
