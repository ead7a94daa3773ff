// A task takes one head of one sequence through its mini-batches, on its state in place.
//
// Bound: 3 products of D x F a token and layer (keys, queries, update; one more for the second
// layer's transpose), by rows of a mini-batch; for one token at a time the bytes of the weights.
// Even there a transposed copy of W2 is cheaper than a product that reads its columns: 20 us a head
// of 64 x 256 instead of 27.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/ttt/kernels.h"
#include "braid/ops/ttt/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ttt/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ttt/ttt-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// The outputs of a cell whose rows have been written.
void ttt_outputs(const Inner& inner, const HeadOperands& in, const HeadNorm& norm, float* y) {
  const TttDims& dims = *inner.dims;
  const TttCell& cell = inner.seen.cell;
  const int64_t n = dims.head_dim;
  const TttScratch& at = *inner.at;
  inner.apply(0, dims.steps, in.q(cell.begin), dims.q_stride, at.z1);
  const float* z = at.z1;
  if (dims.hidden > 0) {
    gelu_rows(cell.count * dims.hidden, at.z1, at.x2, nullptr);
    inner.apply(1, dims.steps, at.x2, dims.hidden, at.z2);
    z = at.z2;
  }
  for (int64_t i = 0; i < cell.count; ++i) {
    const int64_t t = cell.begin + i;
    norm.output(z + i * n, in.q(t), y + (t * dims.heads + in.h) * n);
  }
}

void ttt_head(const TttDims& dims, const TttOperands& operands, int64_t s, int64_t h,
              const float* h0, float* ht, float* scratch, float* y) {
  TttCarver carver(scratch);
  const TttScratch at(dims, carver);
  const HeadOperands in{.dims = &dims, .in = &operands, .h = h};
  const HeadNorm norm = in.norm(carver.take(dims.head_dim), carver.take(dims.head_dim));
  const TttHeadState state(dims, ht + h * dims.state());
  load_state(dims, operands, s, h, h0, state.base());
  const TttCells cells(dims, s);
  for (int64_t c = 0; c < cells.count(); ++c) {
    const TttCell cell = cells[c];
    const Inner inner{.dims = &dims,
                      .state = state,
                      .seen = {.cell = cell, .rate = operands.rate, .mini_batch = dims.mini_batch},
                      .at = &at};
    write_rows(inner, in, norm, {.z1 = at.z1, .y = at.y, .z2 = at.z2}, 0);
    ttt_outputs(inner, in, norm, y);
    if (cell.end() == dims.mini_batch) commit(inner);
  }
  if (cells.count() > 0) clear_rows(dims, state, cells.phase_end());
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(ttt_head);

namespace {
constexpr int64_t kTaskWork = 1 << 16;  // multiply-adds worth a task of its own
}

int64_t ttt_scratch(const TttDims& dims) {
  TttCarver carver(nullptr);
  const TttScratch at(dims, carver);
  for (int i = 0; i < 2; ++i) carver.take(dims.head_dim);
  return carver.size();
}

void ttt(ThreadPool& threads, const TttDims& dims, const TttOperands& in, const float* const* h0,
         float* const* ht, float* scratch, float* y) {
  const int64_t length = std::max<int64_t>(1, dims.tokens / std::max<int64_t>(1, dims.sequences));
  const int64_t work = 3 * dims.weights() * dims.steps * length, size = ttt_scratch(dims);
  threads.parallel_for(dims.sequences * dims.heads, std::max<int64_t>(1, kTaskWork / work),
                       [&](int64_t begin, int64_t end, int worker) {
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t s = i / dims.heads;
                           HWY_DYNAMIC_DISPATCH(ttt_head)
                           (dims, in, s, i % dims.heads, h0[s], ht[s], scratch + worker * size, y);
                         }
                       });
}

}  // namespace braid::cpu
#endif
