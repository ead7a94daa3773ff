#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/adamw/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/adamw/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void update(const AdamWDims& dims, int64_t begin, int64_t end, const float* g, float* p, float* m,
            float* v) {
  const vec::F32Tag d;
  const vec::F32 gradient_scale = hn::Set(d, dims.gradient_scale);
  const vec::F32 beta1 = hn::Set(d, dims.beta1), rest1 = hn::Set(d, 1 - dims.beta1);
  const vec::F32 beta2 = hn::Set(d, dims.beta2), rest2 = hn::Set(d, 1 - dims.beta2);
  const vec::F32 eps = hn::Set(d, dims.eps), keep = hn::Set(d, dims.keep);
  const vec::F32 step_size = hn::Set(d, dims.step_size);
  const vec::F32 inverse_bias2 = hn::Set(d, dims.inverse_bias2);
  vec::for_each_vector(static_cast<size_t>(end - begin), [&](auto at, size_t j) {
    const size_t i = static_cast<size_t>(begin) + j;
    const vec::F32 gi = hn::Mul(at.load(g + i), gradient_scale);
    const vec::F32 mi = hn::MulAdd(rest1, gi, hn::Mul(beta1, at.load(m + i)));
    const vec::F32 vi = hn::MulAdd(hn::Mul(rest2, gi), gi, hn::Mul(beta2, at.load(v + i)));
    const vec::F32 scale = hn::MulAdd(hn::Sqrt(vi), inverse_bias2, eps);
    const vec::F32 move = hn::Div(hn::Mul(step_size, mi), scale);
    at.store(mi, m + i);
    at.store(vi, v + i);
    at.store(hn::MulSub(keep, at.load(p + i), move), p + i);
  });
}

// The sum of squares of a block, in float64: two chains taken in turn, then one tree.
double sum_block(int64_t count, const float* x) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  const auto add = [&](const float* from, auto& sum) {
    const auto v = hn::PromoteTo(d, hn::LoadU(narrow, from));
    sum = hn::MulAdd(v, v, sum);
  };
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    add(x + i, even);
    add(x + i + lanes, odd);
  }
  HWY_ALIGN float tail[2 * HWY_MAX_BYTES / sizeof(double)] = {};
  std::copy(x + i, x + count, tail);
  add(tail, even);
  add(tail + lanes, odd);
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(update);
HWY_EXPORT(sum_block);

void adamw(ThreadPool& threads, const AdamWDims& dims, const float* g, float* p, float* m,
           float* v) {
  threads.parallel_for(dims.count, 16384, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(update)(dims, begin, end, g, p, m, v);
  });
}

void sum_squares(ThreadPool& threads, const SumSquaresDims& dims, const float* x, double* partial,
                 double* total) {
  constexpr int64_t kBlock = SumSquaresDims::kBlock;
  threads.parallel_for(dims.blocks(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kBlock;
      partial[i] = HWY_DYNAMIC_DISPATCH(sum_block)(std::min(kBlock, dims.count - first), x + first);
    }
  });
  for (int64_t i = 0; i < dims.blocks(); ++i) *total += partial[i];
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
