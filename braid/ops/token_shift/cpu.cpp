#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/token_shift/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/token_shift/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

// `before` is null for zeros.
void shift_row(const TokenShiftDims& dims, int64_t row, const float* before, const float* x,
               const TokenShiftInputs& mu, const TokenShiftOutputs& y) {
  const float* now = x + row * dims.x_stride;
  vec::for_each_vector(static_cast<size_t>(dims.width), [&](auto at, size_t j) {
    const vec::F32 xj = at.load(now + j);
    const vec::F32 last = before == nullptr ? hn::Zero(vec::F32Tag()) : at.load(before + j);
    const vec::F32 step = hn::Sub(last, xj);
    for (size_t m = 0; m < static_cast<size_t>(dims.outputs); ++m) {
      at.store(hn::MulAdd(at.load(mu[m] + j), step, xj),
               y[m] + static_cast<size_t>(row * dims.width) + j);
    }
  });
}

// dx of one row, with what the next row, or the final state where the sequence `ends`, sends back;
// d_mu (M, D) gathers.
void shift_row_vjp(const TokenShiftDims& dims, int64_t row, const float* before, const float* x,
                   const TokenShiftInputs& mu, const TokenShiftInputs& dy, bool ends,
                   const float* d_final, float* dx, float* d_mu) {
  const float* now = x + row * dims.x_stride;
  const auto width = static_cast<size_t>(dims.width), outputs = static_cast<size_t>(dims.outputs);
  const size_t at_row = static_cast<size_t>(row) * width;
  vec::for_each_vector(width, [&](auto at, size_t j) {
    const vec::F32 last = before == nullptr ? hn::Zero(vec::F32Tag()) : at.load(before + j);
    const vec::F32 step = hn::Sub(last, at.load(now + j));
    vec::F32 sum = hn::Zero(vec::F32Tag());
    if (ends && d_final != nullptr) sum = at.load(d_final + j);
    for (size_t m = 0; m < outputs; ++m) {
      const vec::F32 muj = at.load(mu[m] + j), g = at.load(dy[m] + at_row + j);
      sum = hn::Add(sum, hn::NegMulAdd(muj, g, g));
      if (!ends) sum = hn::MulAdd(muj, at.load(dy[m] + at_row + width + j), sum);
      float* to = d_mu + m * width + j;
      at.store(hn::MulAdd(g, step, at.load(to)), to);
    }
    at.store(sum, dx + at_row + j);
  });
}

// What the first row of a sequence sends back to the state before it.
void shift_initial_vjp(const TokenShiftDims& dims, int64_t row, const TokenShiftInputs& mu,
                       const TokenShiftInputs& dy, float* d_initial) {
  const auto width = static_cast<size_t>(dims.width);
  vec::for_each_vector(width, [&](auto at, size_t j) {
    vec::F32 sum = hn::Zero(vec::F32Tag());
    for (size_t m = 0; m < static_cast<size_t>(dims.outputs); ++m) {
      sum = hn::MulAdd(at.load(mu[m] + j), at.load(dy[m] + static_cast<size_t>(row) * width + j),
                       sum);
    }
    at.store(sum, d_initial + j);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(shift_row);
HWY_EXPORT(shift_row_vjp);
HWY_EXPORT(shift_initial_vjp);

namespace {

// The sequence that owns a row.
int64_t sequence_of(const TokenShiftDims& dims, int64_t row) {
  return std::upper_bound(dims.offsets, dims.offsets + dims.sequences + 1, row) - dims.offsets - 1;
}

}  // namespace

void token_shift(ThreadPool& threads, const TokenShiftDims& dims, const float* x,
                 const TokenShiftInputs& mu, const float* const* h0, float* const* ht,
                 const TokenShiftOutputs& y) {
  const int64_t grain = 1 + 32768 / (dims.width * dims.outputs);
  threads.parallel_for(dims.tokens, grain, [&](int64_t begin, int64_t end) {
    int64_t s = sequence_of(dims, begin);
    for (int64_t row = begin; row < end; ++row) {
      while (row >= dims.offsets[s + 1]) ++s;
      const float* before = row == dims.offsets[s] ? h0[s] : x + (row - 1) * dims.x_stride;
      HWY_DYNAMIC_DISPATCH(shift_row)(dims, row, before, x, mu, y);
    }
  });
  for (int64_t s = 0; s < dims.sequences; ++s) {
    if (dims.offsets[s] < dims.offsets[s + 1]) {
      std::copy_n(x + (dims.offsets[s + 1] - 1) * dims.x_stride, dims.width, ht[s]);
    } else if (h0[s] == nullptr) {
      std::fill_n(ht[s], dims.width, 0.0f);
    } else if (h0[s] != ht[s]) {
      std::copy_n(h0[s], dims.width, ht[s]);
    }
  }
}

void token_shift_vjp(ThreadPool& threads, const TokenShiftDims& dims, const float* x,
                     const TokenShiftInputs& mu, const float* const* h0, const TokenShiftInputs& dy,
                     const float* const* d_final, float* partial, float* dx, float* d_mu,
                     float* const* d_initial) {
  const int64_t all = dims.outputs * dims.width;
  const int64_t grain = 1 + 32768 / (all * TokenShiftDims::kBlockRows);
  threads.parallel_for(dims.blocks(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = partial + block * all;
      std::fill_n(sums, all, 0.0f);
      const int64_t first = block * TokenShiftDims::kBlockRows;
      int64_t s = sequence_of(dims, first);
      for (int64_t row = first; row < std::min(first + TokenShiftDims::kBlockRows, dims.tokens);
           ++row) {
        while (row >= dims.offsets[s + 1]) ++s;
        const float* before = row == dims.offsets[s] ? h0[s] : x + (row - 1) * dims.x_stride;
        HWY_DYNAMIC_DISPATCH(shift_row_vjp)
        (dims, row, before, x, mu, dy, row + 1 == dims.offsets[s + 1], d_final[s], dx, sums);
      }
    }
  });
  threads.parallel_for(all, 1024, [&](int64_t begin, int64_t end) {
    std::fill(d_mu + begin, d_mu + end, 0.0f);
    for (int64_t block = 0; block < dims.blocks(); ++block) {
      for (int64_t j = begin; j < end; ++j) d_mu[j] += partial[block * all + j];
    }
  });
  for (int64_t s = 0; s < dims.sequences; ++s) {
    if (d_initial[s] == nullptr) continue;
    if (dims.offsets[s] < dims.offsets[s + 1]) {
      HWY_DYNAMIC_DISPATCH(shift_initial_vjp)(dims, dims.offsets[s], mu, dy, d_initial[s]);
    } else if (d_final[s] == nullptr) {
      std::fill_n(d_initial[s], dims.width, 0.0f);
    } else {
      std::copy_n(d_final[s], dims.width, d_initial[s]);
    }
  }
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
