// A task takes one head of one sequence through its chunks, on its state in place.
//
// Bound: 9 products of D x F a token (6 for the keys' gradients, 3 for the queries), by blocks of
// tokens; for one token at a time the bytes of weights and sums.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/lact/kernels.h"
#include "braid/ops/lact/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/lact/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/lact/lact-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

void lact_head(const LactDims& dims, const LactOperands& operands, int64_t s, int64_t h,
               const float* h0, float* ht, float* scratch, float* y) {
  TttCarver carver(scratch);
  const LactScratch at(dims, carver);
  const LactHead in{.dims = &dims, .in = &operands, .h = h};
  const LactHeadState state(dims, ht + h * dims.state());
  load_lact_state(in, s, h0, state);
  transpose_w1(dims, state, at.w1t);
  const int64_t n = dims.head_dim, y_row = dims.heads * n;
  each_block(dims, s, dims.offsets[s], dims.offsets[s + 1],
             [&](const LactBlock& block, bool whole) {
               hidden_rows(dims, state, block.rows, in.q(block.begin), dims.q_stride, at);
               times(block.rows, n, dims.hidden, at.h, dims.hidden, state.w(1), false,
                     y + block.begin * y_row + h * n, y_row);
               add_gradients(in, state, block, at);
               if (!whole) return;
               update_weights(in, state, at);
               transpose_w1(dims, state, at.w1t);
             });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(lact_head);

int64_t lact_scratch(const LactDims& dims) {
  TttCarver carver(nullptr);
  const LactScratch at(dims, carver);
  return carver.size();
}

void lact(ThreadPool& threads, const LactDims& dims, const LactOperands& in, const float* const* h0,
          float* const* ht, float* scratch, float* y) {
  const int64_t size = lact_scratch(dims);
  threads.parallel_for(dims.sequences * dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / dims.heads;
      HWY_DYNAMIC_DISPATCH(lact_head)
      (dims, in, s, i % dims.heads, h0[s], ht[s], scratch + worker * size, y);
    }
  });
}

}  // namespace braid::cpu
#endif
