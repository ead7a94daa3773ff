#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/cross_entropy/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/cross_entropy/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

// stats <- max = max_v row[v] and sum_v exp(row[v] - max): kept apart, since a rounded max + log
// sum would cost the softmax as many digits as it has before the point.
void row_stats(int64_t classes, const float* row, float* stats) {
  const vec::F32Tag d;
  const auto count = static_cast<size_t>(classes);
  const vec::F32 lowest = hn::Neg(hn::Inf(d));
  vec::F32 highest = lowest;
  vec::for_each_vector(count, [&](auto at, size_t v) {
    highest = hn::Max(highest, at.keep(at.load(row + v), lowest));
  });
  const float max = hn::GetLane(hn::MaxOfLanes(d, highest));
  const vec::F32 shift = hn::Set(d, max);
  const float sum = vec::sum_over_row(count, [&](auto at, size_t v, vec::F32 total) {
    return hn::Add(total, at.keep(vec::exp(hn::Sub(at.load(row + v), shift)), hn::Zero(d)));
  });
  stats[0] = max;
  stats[1] = sum;
}

// row <- factor exp(row - max)
void softmax_row(int64_t classes, float max, float factor, float* row) {
  const vec::F32Tag d;
  const vec::F32 shift = hn::Set(d, max), f = hn::Set(d, factor);
  vec::for_each_vector(static_cast<size_t>(classes), [&](auto at, size_t v) {
    at.store(hn::Mul(f, vec::exp(hn::Sub(at.load(row + v), shift))), row + v);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(row_stats);
HWY_EXPORT(softmax_row);

void cross_entropy(ThreadPool& threads, const CrossEntropyDims& dims, const float* logits,
                   const int32_t* targets, float* token_losses, int32_t* correct, float* stats,
                   float* loss) {
  threads.parallel_for(dims.rows, 1 + 16384 / dims.classes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* max_sum = stats + 2 * i;
      token_losses[i] = max_sum[0] = 0;
      max_sum[1] = 1;
      correct[i] = 0;
      if (targets[i] < 0) continue;
      const float* row = logits + i * dims.stride;
      HWY_DYNAMIC_DISPATCH(row_stats)(dims.classes, row, max_sum);
      // A tie is no answer, or a model that says nothing would always be right.
      correct[i] =
          row[targets[i]] == max_sum[0] && std::count(row, row + dims.classes, max_sum[0]) == 1;
      const double below = static_cast<double>(max_sum[0]) - static_cast<double>(row[targets[i]]);
      token_losses[i] = static_cast<float>(below + std::log(static_cast<double>(max_sum[1])));
    }
  });
  double sum = 0;
  for (int64_t i = 0; i < dims.rows; ++i) sum += static_cast<double>(token_losses[i]);
  *loss = dims.counted == 0 ? 0 : static_cast<float>(sum / static_cast<double>(dims.counted));
}

void cross_entropy_vjp(ThreadPool& threads, const CrossEntropyDims& dims, const int32_t* targets,
                       const float* stats, const float* dloss, float* logits) {
  const float factor = dims.counted == 0 ? 0 : *dloss / static_cast<float>(dims.counted);
  threads.parallel_for(dims.rows, 1 + 16384 / dims.classes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = logits + i * dims.stride;
      if (targets[i] < 0) {
        std::fill_n(row, dims.classes, 0.0f);
        continue;
      }
      HWY_DYNAMIC_DISPATCH(softmax_row)
      (dims.classes, stats[2 * i], factor / stats[2 * i + 1], row);
      row[targets[i]] -= factor;
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
