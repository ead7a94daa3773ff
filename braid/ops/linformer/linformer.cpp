#include "braid/ops/linformer/linformer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/linformer/carried.h"
#include "braid/ops/linformer/kernels.h"

namespace braid {
namespace {

using SummariesKernel = Kernel<&cpu::linformer_summaries>;
using SummariesVjp = Kernel<&cpu::linformer_summaries_vjp>;
using AttentionKernel = Kernel<&cpu::linformer_attention>;
using AttentionVjp = Kernel<&cpu::linformer_attention_vjp>;

int64_t runs_of(const SequenceBatch& batch, int64_t s, int64_t block) {
  return block == 0 ? 1 : batch.length(s) / block;
}

int64_t all_runs(const SequenceBatch& batch, int64_t block) {
  int64_t count = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) count += runs_of(batch, s, block);
  return count;
}

void check_block(int64_t block) {
  check(block == 0 || (block > 0 && kPageTokens % block == 0),
        "linformer: block is {}, want 0 or a divisor of {}", block, kPageTokens);
}

struct Runs {
  std::vector<LinformerRun> runs;
  std::vector<int64_t> rows;  // of x, where each begins
};

// `s` receives the summaries; null where only the gradient is wanted.
Runs make_runs(const SequenceBatch& batch, int64_t block, int64_t rank, const Tensor& x, float* s) {
  Runs made;
  for (int64_t i = 0; i < batch.sequences(); ++i) {
    const int64_t first = batch.offsets[static_cast<size_t>(i)];
    const int64_t rows = block == 0 ? batch.length(i) : block;
    for (int64_t b = 0; b < runs_of(batch, i, block); ++b) {
      const int64_t row = first + b * rows;
      const auto count = static_cast<int64_t>(made.runs.size());
      made.rows.push_back(row);
      made.runs.push_back({.x = x.f32() + row * x.row_stride(),
                           .rows = rows,
                           .stride = x.row_stride(),
                           .s = s == nullptr ? nullptr : s + count * rank * x.dim(1)});
    }
  }
  return made;
}

Grads summaries_vjp(Context& ctx, const Tensor& x, const Tensor& e, const SequenceBatch& batch,
                    int64_t block, const Tensor& dy) {
  const int64_t rank = e.dim(1), C = x.dim(1);
  const Runs runs = make_runs(batch, block, rank, x, nullptr);
  const LinformerSummaryDims dims{
      .rank = rank, .channels = C, .runs = std::ssize(runs.runs), .e_rows = e.dim(0)};
  // Rows past the last complete block have no part in it.
  Tensor dx = ctx.zeros(x.shape()), de = ctx.empty(e.shape());
  const Tensor ds = dy.contiguous() ? dy : ctx.to_device(dy);
  const Tensor turned = ctx.empty({dims.runs, C, rank});
  SummariesVjp::run(ctx, "linformer", dims, runs.runs.data(), runs.rows.data(), e.f32(), ds.f32(),
                    turned.f32(), dx.f32(), de.f32());
  return {dx, de};
}

void check_summary_inputs(const Tensor& x, const Tensor& e, const SequenceBatch& batch,
                          int64_t block) {
  check_block(block);
  check(x.rank() == 2 && x.rows() == batch.tokens(), "linformer: x has shape {}, want ({}, C)",
        to_string(x.shape()), batch.tokens());
  int64_t rows = block;
  for (int64_t s = 0; block == 0 && s < batch.sequences(); ++s) {
    rows = std::max(rows, batch.length(s));
  }
  check(e.rank() == 2 && e.contiguous() && e.dim(1) > 0 &&
            (block == 0 ? e.dim(0) >= rows : e.dim(0) == block),
        "linformer: e has shape {}, want ({} rows, rank)", to_string(e.shape()), rows);
}

LinformerDims make_dims(const Tensor& q, int64_t k_width, int64_t v_width,
                        const SequenceBatch& batch, const LinformerOptions& o) {
  check_block(o.block);
  check(o.heads > 0 && o.kv_heads > 0 && o.heads % o.kv_heads == 0 && o.rank > 0,
        "linformer: {} heads share {} kv heads of rank {}, want a positive multiple", o.heads,
        o.kv_heads, o.rank);
  check(q.rank() == 2 && q.rows() == batch.tokens() && q.dim(1) % o.heads == 0 && q.dim(1) > 0,
        "linformer: q has shape {}, want ({}, {} heads)", to_string(q.shape()), batch.tokens(),
        o.heads);
  const int64_t hd = q.dim(1) / o.heads;
  check(k_width == o.kv_heads * hd && v_width > 0 && v_width % o.kv_heads == 0,
        "linformer: keys are {} wide and values {}, want {} and a multiple of {}", k_width, v_width,
        o.kv_heads * hd, o.kv_heads);
  return {.heads = o.heads,
          .kv_heads = o.kv_heads,
          .head_dim = hd,
          .value_dim = v_width / o.kv_heads,
          .rank = o.rank,
          .block = o.block,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hd))),
          .q_stride = q.row_stride()};
}

struct Plan {
  std::vector<LinformerSegment> segments;
  std::vector<int64_t> offsets{0};  // of sequences in `segments`
  std::vector<LinformerSummary> summaries;
};

LinformerRows rows_from(const Tensor& k, const Tensor& v, int64_t row) {
  return {.k = k.f32() + row * k.row_stride(),
          .v = v.f32() + row * v.row_stride(),
          .k_stride = k.row_stride(),
          .v_stride = v.row_stride()};
}

// Whole sequences: blocks, or pieces of rows that all see one summary.
Plan plan_whole(const LinformerDims& dims, const SequenceBatch& batch, const Tensor& k,
                const Tensor& v, const Tensor& sk, const Tensor& sv) {
  Plan plan;
  const int64_t step = dims.block == 0 ? kLinformerRows : dims.block;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t first = batch.offsets[static_cast<size_t>(s)], T = batch.length(s);
    const auto summary = static_cast<int64_t>(plan.summaries.size());
    for (int64_t t = 0; t < T; t += step) {
      LinformerSegment segment{
          .row = first + t, .length = std::min(step, T - t), .summary = summary, .summaries = 1};
      if (dims.block > 0) {
        segment.own = rows_from(k, v, segment.row);
        if (t > 0) segment.before = rows_from(k, v, segment.row - step);
        segment.summaries = std::max<int64_t>(0, t / step - 1);
      }
      plan.segments.push_back(segment);
    }
    plan.offsets.push_back(std::ssize(plan.segments));
    for (int64_t b = 0; b < runs_of(batch, s, dims.block); ++b) {
      const int64_t row = std::ssize(plan.summaries) * dims.rank;
      plan.summaries.push_back({sk.f32() + row * sk.dim(1), sv.f32() + row * sv.dim(1)});
    }
  }
  return plan;
}

int64_t most_summaries(const Plan& plan) {
  int64_t most = 0;
  for (const LinformerSegment& s : plan.segments) most = std::max(most, s.summaries);
  return most;
}

Tensor attend(Context& ctx, LinformerDims dims, const Plan& plan, const Tensor& q) {
  dims.summaries_max = most_summaries(plan);
  Tensor y = ctx.empty({q.rows(), dims.heads * dims.value_dim});
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::linformer_scratch(dims)});
  AttentionKernel::run(ctx, "linformer", dims, std::ssize(plan.segments), plan.segments.data(),
                       plan.summaries.data(), q.f32(), y.f32(), scratch.f32());
  return y;
}

struct Saved {
  Tensor q, k, v, sk, sv;
  SequenceBatch batch;
};

Grads attention_vjp(Context& ctx, LinformerDims dims, const Saved& saved, const Tensor& dy) {
  const Plan plan = plan_whole(dims, saved.batch, saved.k, saved.v, saved.sk, saved.sv);
  dims.summaries_max = most_summaries(plan);
  const auto zeros_like = [&](const Tensor& x) {
    return x.defined() ? ctx.zeros(x.shape()) : Tensor{};
  };
  Grads grads;
  for (const Tensor* x : {&saved.q, &saved.k, &saved.v, &saved.sk, &saved.sv}) {
    grads.push_back(zeros_like(*x));
  }
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::linformer_vjp_scratch(dims)});
  const LinformerVjp vjp{.dy = dy.f32(),
                         .dy_stride = dy.row_stride(),
                         .dq = grads[0].f32(),
                         .dk = grads[1].defined() ? grads[1].f32() : nullptr,
                         .dv = grads[2].defined() ? grads[2].f32() : nullptr,
                         .dsk = grads[3].f32(),
                         .dsv = grads[4].f32()};
  AttentionVjp::run(ctx, "linformer", dims, saved.batch.sequences(), plan.offsets.data(),
                    plan.segments.data(), plan.summaries.data(), saved.q.f32(), vjp, scratch.f32());
  return grads;
}

}  // namespace

Tensor linformer_summaries(Context& ctx, const Tensor& x, const Tensor& e,
                           const SequenceBatch& batch, int64_t block) {
  check_summary_inputs(x, e, batch, block);
  const int64_t rank = e.dim(1);
  Tensor s = ctx.empty({all_runs(batch, block) * rank, x.dim(1)});
  const Runs runs = make_runs(batch, block, rank, x, s.f32());
  const LinformerSummaryDims dims{
      .rank = rank, .channels = x.dim(1), .runs = std::ssize(runs.runs), .e_rows = e.dim(0)};
  SummariesKernel::run(ctx, "linformer", dims, runs.runs.data(), e.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x, e}, s, [=](Context& inner, const Tensor& dy) -> Grads {
      return summaries_vjp(inner, x, e, batch, block, dy);
    });
  }
  return s;
}

Tensor linformer_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& sk, const Tensor& sv, const SequenceBatch& batch,
                           const LinformerOptions& options) {
  const int64_t rows = all_runs(batch, options.block) * options.rank;
  for (const Tensor* x : {&sk, &sv}) {
    check(x->rank() == 2 && x->rows() == rows && x->contiguous(),
          "linformer: summaries have shape {}, want contiguous ({}, C)", to_string(x->shape()),
          rows);
  }
  const LinformerDims dims = make_dims(q, sk.dim(1), sv.dim(1), batch, options);
  if (options.block > 0) {
    check(k.shape() == Shape({q.rows(), sk.dim(1)}) && v.shape() == Shape({q.rows(), sv.dim(1)}),
          "linformer: k and v have shapes {} and {}, want ({}, {}) and ({}, {})",
          to_string(k.shape()), to_string(v.shape()), q.rows(), sk.dim(1), q.rows(), sv.dim(1));
  }
  Tensor y = attend(ctx, dims, plan_whole(dims, batch, k, v, sk, sv), q);
  if (Tape* tape = ctx.tape()) {
    const Saved saved{q, k, v, sk, sv, batch};
    tape->record({q, k, v, sk, sv}, y, [dims, saved](Context& inner, const Tensor& dy) -> Grads {
      return attention_vjp(inner, dims, saved, dy);
    });
  }
  return y;
}

int64_t linformer_page_floats(const LinformerOptions& options, int64_t kv_width) {
  return (options.rank * kv_width + options.block - 1) / options.block;
}

Tensor linformer_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& e, const Tensor& f, const SequenceBatch& batch,
                           const LinformerOptions& options,
                           std::span<const LinformerState> states) {
  check(ctx.tape() == nullptr || !(Tape::tracks(q) || Tape::tracks(k) || Tape::tracks(v)),
        "linformer: a carried state has no gradient; leave the states out in training");
  check(options.block > 0, "linformer: block is 0, want one that divides {} to carry a state",
        kPageTokens);
  check_summary_inputs(k, e, batch, options.block);
  check_summary_inputs(v, f, batch, options.block);
  check(e.dim(1) == options.rank && f.dim(1) == options.rank,
        "linformer: e and f have ranks {} and {}, want {}", e.dim(1), f.dim(1), options.rank);
  const LinformerDims dims = make_dims(q, k.dim(1), v.dim(1), batch, options);
  check(std::ssize(states) == batch.sequences(), "linformer: {} states, want {}", states.size(),
        batch.sequences());
  for (size_t s = 0; s < states.size(); ++s) {
    const int64_t end = batch.starts[s] + batch.length(static_cast<int64_t>(s));
    check(batch.starts[s] >= 0 && states[s].blocks != nullptr &&
              states[s].summaries.count * kPageTokens >= end,
          "linformer: the state of sequence {} holds {} tokens, want {}", s,
          states[s].summaries.count * kPageTokens, end);
  }
  return linformer_carried(ctx, dims, q, k, v, e, f, batch, states);
}

}  // namespace braid
