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
namespace {
HWY_EXPORT(weigh_row);
HWY_EXPORT(combine_row);

Activation plain_activation(ExpertActivation activation) {
  switch (activation) {
    case ExpertActivation::kRelu2:
      return Activation::kReluSquared;
    case ExpertActivation::kRelu:
      return Activation::kRelu;
    default:
      return Activation::kSilu;
  }
}

}  // namespace

void expert_activation(ThreadPool& threads, const ExpertActivationDims& dims, const float* pre,
                       float* h) {
  const int64_t rows = dims.rows, hidden = dims.hidden;
  if (dims.activation == ExpertActivation::kSwiglu) {
    const SwigluDims swiglu_dims{.rows = rows, .width = hidden, .x_stride = 2 * hidden};
    swiglu(threads, swiglu_dims, pre, h);
  } else if (dims.activation == ExpertActivation::kGelu) {
    gelu(threads, {.rows = rows, .width = hidden, .x_stride = hidden}, pre, h);
  } else {
    const ActivationDims plain{.rows = rows,
                               .width = hidden,
                               .x_stride = hidden,
                               .kind = plain_activation(dims.activation)};
    activation(threads, plain, pre, h);
  }
}

void expert_activation_vjp(ThreadPool& threads, const ExpertActivationDims& dims,
                           const CombineDims& combine, const int32_t* order, const float* weights,
                           const float* pre, float* u, float* h, float* dpre, float* dweights) {
  const int64_t rows = dims.rows, hidden = dims.hidden;
  threads.parallel_for(rows, 1 + 16384 / hidden, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t n = order[m] / combine.slots, j = order[m] % combine.slots;
      dweights[order[m]] = HWY_DYNAMIC_DISPATCH(weigh_row)(
          hidden, weights[n * combine.weights_row + j], u + m * hidden, h + m * hidden);
    }
  });
  if (dims.activation == ExpertActivation::kSwiglu) {
    swiglu_vjp(threads, {rows, hidden, 2 * hidden, hidden}, pre, u, dpre);
  } else if (dims.activation == ExpertActivation::kGelu) {
    gelu_vjp(threads, {rows, hidden, hidden, hidden, false}, pre, u, dpre);
  } else {
    activation_vjp(threads, {rows, hidden, hidden, hidden, plain_activation(dims.activation)}, pre,
                   u, dpre);
  }
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

namespace {
LinearDims group_dims(const GroupedDims& dims, const ExpertGroup& group) {
  return {.m = group.end - group.begin,
          .b = dims.b,
          .a_row = dims.a_row,
          .a_column = 1,
          .c_row = dims.c_row,
          .start_row = 0};
}
}  // namespace

size_t grouped_scratch_bytes(const GroupedDims& dims, const ExpertGroup* groups) {
  size_t bytes = 0;
  for (int64_t g = 0; g < dims.groups; ++g) {
    bytes = std::max(bytes, linear_scratch_bytes(group_dims(dims, groups[g])));
  }
  return bytes;
}

void grouped_linear(ThreadPool& threads, const GroupedDims& dims, const ExpertGroup* groups,
                    const float* a, float* c, void* scratch) {
  for (int64_t g = 0; g < dims.groups; ++g) {
    linear(threads, group_dims(dims, groups[g]), a + groups[g].begin * dims.a_row, groups[g].matrix,
           nullptr, c + groups[g].begin * dims.c_row, scratch);
  }
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
