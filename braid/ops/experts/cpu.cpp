#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/activation/kernels.h"
#include "braid/ops/experts/kernels.h"
#include "braid/ops/gelu/kernels.h"
#include "braid/ops/swiglu/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/experts/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

// dweight <- <u, h>, then both times the weight.
float weigh_row(int64_t width, float weight, float* u, float* h) {
  const auto count = static_cast<size_t>(width);
  const float sum = vec::sum_over_row(count, [&](auto at, size_t i, vec::F32 s) {
    return hn::MulAdd(at.load(u + i), at.load(h + i), s);
  });
  const vec::F32 w = hn::Set(vec::F32Tag(), weight);
  vec::for_each_vector(count, [&](auto at, size_t i) {
    at.store(hn::Mul(w, at.load(u + i)), u + i);
    at.store(hn::Mul(w, at.load(h + i)), h + i);
  });
  return sum;
}

// A vector of a row at a time, so that the chain over the slots stays in a register.
void combine_row(const CombineDims& dims, const int32_t* place, const float* weights,
                 const float* rows, float* y) {
  const vec::F32Tag d;
  vec::for_each_vector(static_cast<size_t>(dims.width), [&](auto at, size_t i) {
    vec::F32 sum = hn::Zero(d);
    for (int64_t j = 0; j < dims.slots; ++j) {
      if (place[j] < 0) continue;
      const vec::F32 row = at.load(rows + place[j] * dims.width + i);
      sum = hn::MulAdd(hn::Set(d, weights == nullptr ? 1.0f : weights[j]), row, sum);
    }
    at.store(sum, y + i);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(weigh_row);
HWY_EXPORT(combine_row);

namespace {

ActivationDims plain_dims(const ExpertDims& dims, int64_t rows) {
  const Activation kind = dims.activation == ExpertActivation::kRelu2  ? Activation::kReluSquared
                          : dims.activation == ExpertActivation::kRelu ? Activation::kRelu
                                                                       : Activation::kSilu;
  return {rows, dims.hidden, dims.hidden, dims.hidden, kind};
}

}  // namespace

void activate_rows(const ExpertDims& dims, int64_t rows, const float* pre, float* h) {
  const int64_t hidden = dims.hidden;
  if (dims.activation == ExpertActivation::kSwiglu) {
    swiglu_rows({rows, hidden, 2 * hidden, hidden}, 0, rows, pre, h);
  } else if (dims.activation == ExpertActivation::kGelu) {
    gelu_rows({rows, hidden, hidden, hidden, false}, 0, rows, pre, nullptr, h);
  } else {
    activation_rows(plain_dims(dims, rows), 0, rows, pre, nullptr, h);
  }
}

void activate_rows_vjp(const ExpertDims& dims, int64_t rows, const float* pre, const float* dh,
                       float* dpre) {
  const int64_t hidden = dims.hidden;
  if (dims.activation == ExpertActivation::kSwiglu) {
    swiglu_rows_vjp({rows, hidden, 2 * hidden, hidden}, 0, rows, pre, dh, dpre);
  } else if (dims.activation == ExpertActivation::kGelu) {
    gelu_rows({rows, hidden, hidden, hidden, false}, 0, rows, pre, dh, dpre);
  } else {
    activation_rows(plain_dims(dims, rows), 0, rows, pre, dh, dpre);
  }
}

float weigh_row(int64_t hidden, float weight, float* u, float* h) {
  return HWY_DYNAMIC_DISPATCH(weigh_row)(hidden, weight, u, h);
}

void combine_rows(ThreadPool& threads, const CombineDims& dims, const int32_t* place,
                  const float* weights, const float* rows, float* y) {
  const int64_t grain = 1 + (1 << 15) / std::max<int64_t>(1, dims.slots * dims.width);
  threads.parallel_for(dims.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      HWY_DYNAMIC_DISPATCH(combine_row)
      (dims, place + n * dims.slots, weights == nullptr ? nullptr : weights + n * dims.weights_row,
       rows, y + n * dims.width);
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
