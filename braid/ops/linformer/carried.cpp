// The causal form over a carried state: rows of the last two blocks wait in the state, summaries
// of complete ones go to its pages.

#include "braid/ops/linformer/carried.h"

#include <algorithm>
#include <vector>

#include "braid/core/kernel.h"

namespace braid {
namespace {

using SummariesKernel = Kernel<&cpu::linformer_summaries>;
using AttentionKernel = Kernel<&cpu::linformer_attention>;

class Carried {
 public:
  Carried(Context& ctx, const LinformerDims& dims, const Tensor& k, const Tensor& v)
      : ctx_(ctx), dims_(dims), k_(k), v_(v), KC_(k.dim(1)), VC_(v.dim(1)) {}

  // The blocks that rows [row, row + length), token `start` of their sequence on, lie in.
  void add(int64_t row, int64_t start, int64_t length, const LinformerState& state) {
    const int64_t B = dims_.block, end = start + length, opening = start / B;
    const auto summary = static_cast<int64_t>(summaries_.size());
    keep(state, opening, start % B, row, std::min(length, B - start % B));
    // The opening block is read from the state, which has its beginning; later ones from the batch.
    const auto rows_of = [&](int64_t block) {
      return block <= opening ? kept(state, block) : in_batch(row + block * B - start);
    };
    for (int64_t t = start; t < end;) {
      const int64_t block = t / B, first = t % B, count = std::min(end - t, B - first);
      LinformerSegment segment{.row = row + t - start,
                               .length = count,
                               .first = first,
                               .own = rows_of(block),
                               .summary = summary,
                               .summaries = std::max<int64_t>(0, block - 1)};
      if (block > 0) segment.before = rows_of(block - 1);
      segments_.push_back(segment);
      t += count;
      if (first + count == B) complete(segment.own, summary_of(state, block));
    }
    for (int64_t b = 0; b < end / B; ++b) {
      float* to = summary_of(state, b);
      summaries_.push_back({to, to + dims_.rank * KC_});
    }
    const int64_t last = (end - 1) / B;
    for (int64_t block = std::max(opening + 1, last - 1); block <= last; ++block) {
      const int64_t t = block * B;
      late_.push_back({&state, block, row + t - start, std::min(B, end - t)});
    }
  }

  Tensor run(const Tensor& q, const Tensor& e, const Tensor& f) {
    const auto count = static_cast<int64_t>(k_runs_.size());
    const LinformerSummaryDims of_k{
        .rank = dims_.rank, .channels = KC_, .runs = count, .e_rows = dims_.block};
    LinformerSummaryDims of_v = of_k;
    of_v.channels = VC_;
    SummariesKernel::run(ctx_, "linformer", of_k, k_runs_.data(), e.f32());
    SummariesKernel::run(ctx_, "linformer", of_v, v_runs_.data(), f.f32());
    LinformerDims dims = dims_;
    dims.summaries_max = 0;
    for (const LinformerSegment& s : segments_) {
      dims.summaries_max = std::max(dims.summaries_max, s.summaries);
    }
    Tensor y = ctx_.empty({q.rows(), dims.heads * dims.value_dim});
    const Tensor scratch = ctx_.empty({ctx_.threads().size(), cpu::linformer_scratch(dims)});
    AttentionKernel::run(ctx_, "linformer", dims, std::ssize(segments_), segments_.data(),
                         summaries_.data(), q.f32(), y.f32(), scratch.f32());
    // Only now: older blocks were read from where these go.
    for (const Late& late : late_) keep(*late.state, late.block, 0, late.row, late.count);
    return y;
  }

 private:
  struct Late {
    const LinformerState* state;
    int64_t block, row, count;
  };

  LinformerRows kept(const LinformerState& state, int64_t block) const {
    const int64_t first = block % 2 * dims_.block;
    return {.k = state.blocks + first * KC_,
            .v = state.blocks + 2 * dims_.block * KC_ + first * VC_,
            .k_stride = KC_,
            .v_stride = VC_};
  }
  LinformerRows in_batch(int64_t row) const {
    return {.k = k_.f32() + row * k_.row_stride(),
            .v = v_.f32() + row * v_.row_stride(),
            .k_stride = k_.row_stride(),
            .v_stride = v_.row_stride()};
  }

  // Rows of the batch to rows [first, first + count) of a block in the state.
  void keep(const LinformerState& state, int64_t block, int64_t first, int64_t row, int64_t count) {
    const int64_t to = block % 2 * dims_.block + first;
    float* k = state.blocks + to * KC_;
    float* v = state.blocks + 2 * dims_.block * KC_ + to * VC_;
    for (int64_t i = 0; i < count; ++i) {
      ctx_.api().copy(k + i * KC_, k_.f32() + (row + i) * k_.row_stride(),
                      static_cast<size_t>(KC_) * sizeof(float));
      ctx_.api().copy(v + i * VC_, v_.f32() + (row + i) * v_.row_stride(),
                      static_cast<size_t>(VC_) * sizeof(float));
    }
  }

  void complete(const LinformerRows& rows, float* to) {
    k_runs_.push_back({.x = rows.k, .rows = dims_.block, .stride = rows.k_stride, .s = to});
    v_runs_.push_back(
        {.x = rows.v, .rows = dims_.block, .stride = rows.v_stride, .s = to + dims_.rank * KC_});
  }

  float* summary_of(const LinformerState& state, int64_t block) const {
    const int64_t token = block * dims_.block;
    const int64_t within = token % kPageTokens / dims_.block;
    return static_cast<float*>(state.summaries.page_of(token)) + within * dims_.rank * (KC_ + VC_);
  }

  Context& ctx_;
  const LinformerDims dims_;
  const Tensor &k_, &v_;
  const int64_t KC_, VC_;
  std::vector<LinformerSegment> segments_;
  std::vector<LinformerSummary> summaries_;
  std::vector<LinformerRun> k_runs_, v_runs_;
  std::vector<Late> late_;
};

}  // namespace

Tensor linformer_carried(Context& ctx, const LinformerDims& dims, const Tensor& q, const Tensor& k,
                         const Tensor& v, const Tensor& e, const Tensor& f,
                         const SequenceBatch& batch, std::span<const LinformerState> states) {
  Carried carried(ctx, dims, k, v);
  for (size_t s = 0; s < states.size(); ++s) {
    carried.add(batch.offsets[s], batch.starts[s], batch.length(static_cast<int64_t>(s)),
                states[s]);
  }
  return carried.run(q, e, f);
}

}  // namespace braid
