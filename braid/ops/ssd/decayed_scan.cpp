#include "braid/ops/ssd/decayed_scan.h"

#include <algorithm>
#include <utility>

#include "braid/core/kernel.h"
#include "braid/ops/ssd/chunk_grid.h"
#include "braid/ops/ssd/kernels.h"

namespace braid {
namespace {

using ScanRows = Kernel<&cpu::ssd_scan_rows>;
using ScanColumns = Kernel<&cpu::ssd_scan_columns>;
using ChunkSums = Kernel<&cpu::ssd_chunk_sums>;
using ChunkPass = Kernel<&cpu::ssd_chunk_pass>;
using ChunkOutputs = Kernel<&cpu::ssd_chunk_outputs>;
using ChunkGrads = Kernel<&cpu::ssd_chunk_grads>;
using StateDots = Kernel<&cpu::ssd_state_dots>;
using ScaleStates = Kernel<&cpu::ssd_scale_states>;

using Pointers = std::vector<float*>;
using ConstPointers = std::vector<const float*>;

float* pointer(const Tensor& x) { return x.defined() ? x.f32() : nullptr; }

ConstPointers const_rows(const Pointers& rows) { return {rows.begin(), rows.end()}; }
ConstPointers const_rows(const Tensor& states, int64_t sequences) {
  return const_rows(state_rows(states, sequences));
}

SsdDims dims_of(const DecayedScan& scan, const SequenceBatch& batch) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .heads = scan.heads,
          .head_dim = scan.head_dim,
          .groups = scan.groups,
          .state = scan.state,
          .x_stride = scan.u.row_stride(),
          .b_stride = scan.b.row_stride(),
          .c_stride = scan.c.row_stride(),
          .y_stride = scan.heads * scan.head_dim,
          .offsets = batch.offsets.data()};
}

Tensor row_scan_scratch(Context& ctx, const SsdDims& dims) {
  return ctx.empty({ctx.threads().size(), cpu::ssd_scan_scratch(dims)});
}

Tensor forward_recurrent(Context& ctx, const DecayedScan& scan, const SsdDims& dims,
                         const Pointers& h0, const Pointers& ht) {
  Tensor y = ctx.empty({dims.tokens, dims.heads * dims.head_dim});
  const Tensor scratch = row_scan_scratch(ctx, dims);
  ScanRows::run(ctx, "ssd", dims, SsdScan{.scale = pointer(scan.scale)}, scan.u.f32(), scan.b.f32(),
                scan.c.f32(), scan.decay.f32(), pointer(scan.skip), const_rows(h0).data(),
                ht.data(), scratch.f32(), y.f32());
  return y;
}

// States at the starts of all chunks (chunks, H, P, N), or their adjoints at the ends. dims.x and
// dims.b are the strides of u and b, whatever stands in their places.
Tensor chunk_states(Context& ctx, const SsdChunkDims& dims, bool reverse, const float* u,
                    const DecayedScan& scan, const float* b, const Tensor& scratch,
                    const ConstPointers& h0, const Pointers& ht) {
  const SsdDims& base = dims.base;
  Tensor sums = ctx.empty({dims.chunks, base.heads, base.head_dim, base.state});
  const Tensor totals = ctx.empty({dims.chunks, base.heads});
  ChunkSums::run(ctx, "ssd", dims, reverse, u, pointer(scan.scale), b, scan.log_decay.f32(),
                 scratch.f32(), sums.f32(), totals.f32());
  ChunkPass::run(ctx, "ssd", dims, reverse, totals.f32(), h0.data(), ht.data(), sums.f32());
  return sums;
}

Tensor forward_chunked(Context& ctx, const DecayedScan& scan, const SsdChunkDims& dims,
                       const Pointers& h0, const Pointers& ht) {
  const SsdDims& base = dims.base;
  Tensor y = ctx.empty({base.tokens, base.heads * base.head_dim});
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ssd_chunk_scratch(dims)});
  const Tensor starts =
      chunk_states(ctx, dims, false, scan.u.f32(), scan, scan.b.f32(), scratch, const_rows(h0), ht);
  ChunkOutputs::run(ctx, "ssd", dims, scan.u.f32(), pointer(scan.scale), scan.b.f32(), scan.c.f32(),
                    scan.log_decay.f32(), pointer(scan.skip), starts.f32(), scratch.f32(), y.f32());
  return y;
}

void vjp_recurrent(Context& ctx, const DecayedScan& scan, const SsdDims& dims,
                   const Tensor& initial, const Tensor& dy, const Tensor& d_final,
                   DecayedScanGrads& grads) {
  const int64_t sequences = dims.sequences;
  const Tensor scratch = row_scan_scratch(ctx, dims);
  const ConstPointers h0 = const_rows(initial, sequences), g0 = const_rows(d_final, sequences);
  const Pointers gt = state_rows(grads.d_initial, sequences);
  const float* decay = scan.decay.f32();

  SsdDims adjoint = dims;  // dy in the place of u, C and B exchanged
  adjoint.x_stride = dy.row_stride();
  std::swap(adjoint.b_stride, adjoint.c_stride);
  ScanRows::run(ctx, "ssd", adjoint, SsdScan{.reverse = true}, dy.f32(), scan.c.f32(), scan.b.f32(),
                decay, nullptr, g0.data(), gt.data(), scratch.f32(), grads.du.f32());
  if (grads.d_initial.defined()) ScaleStates::run(ctx, "ssd", dims, decay, gt.data());

  const SsdColumns for_c{.k_scale = pointer(scan.scale),
                         .k_stride = dims.x_stride,
                         .q_stride = dy.row_stride(),
                         .b_stride = dims.b_stride};
  ScanColumns::run(ctx, "ssd", dims, for_c, scan.u.f32(), dy.f32(), scan.b.f32(), decay, h0.data(),
                   scratch.f32(), grads.dc.f32());
  const SsdColumns for_b{.reverse = true,
                         .q_scale = pointer(scan.scale),
                         .k_stride = dy.row_stride(),
                         .q_stride = dims.x_stride,
                         .b_stride = dims.c_stride};
  ScanColumns::run(ctx, "ssd", dims, for_b, dy.f32(), scan.u.f32(), scan.c.f32(), decay, g0.data(),
                   scratch.f32(), grads.db.f32());
}

void vjp_chunked(Context& ctx, const DecayedScan& scan, const SsdChunkDims& dims,
                 const Tensor& initial, const Tensor& dy, const Tensor& d_final,
                 DecayedScanGrads& grads) {
  const int64_t sequences = dims.base.sequences;
  SsdChunkDims adjoint = dims;  // dy in the place of u, C in that of B
  adjoint.base.x_stride = dy.row_stride();
  adjoint.base.b_stride = dims.base.c_stride;
  const Tensor scratch = ctx.empty({ctx.threads().size(), cpu::ssd_chunk_scratch(dims)});
  // Computed again rather than kept: one product of the nine, against chunks x state of memory.
  const Tensor starts =
      chunk_states(ctx, dims, false, scan.u.f32(), scan, scan.b.f32(), scratch,
                   const_rows(initial, sequences), state_rows(Tensor(), sequences));
  const Tensor ends =
      chunk_states(ctx, adjoint, true, dy.f32(), scan, scan.c.f32(), scratch,
                   const_rows(d_final, sequences), state_rows(grads.d_initial, sequences));
  ChunkGrads::run(ctx, "ssd", dims, scan.u.f32(), pointer(scan.scale), scan.b.f32(), scan.c.f32(),
                  scan.log_decay.f32(), dy.f32(), dy.row_stride(), starts.f32(), ends.f32(),
                  scratch.f32(), grads.du.f32(), grads.db.f32(), grads.dc.f32());
}

}  // namespace

std::vector<float*> state_rows(const Tensor& states, int64_t sequences) {
  std::vector<float*> rows(static_cast<size_t>(sequences), nullptr);
  if (!states.defined()) return rows;
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = states.f32() + static_cast<int64_t>(s) * states.row_stride();
  }
  return rows;
}

bool scan_forward_is_chunked(Form form) {
  return form == Form::kChunked || form == Form::kParallel;
}
bool scan_vjp_is_chunked(Form form) { return form != Form::kRecurrent; }

Tensor decayed_scan(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                    const std::vector<float*>& h0, const std::vector<float*>& ht) {
  const SsdDims dims = dims_of(scan, batch);
  if (!scan_forward_is_chunked(ctx.form())) return forward_recurrent(ctx, scan, dims, h0, ht);
  const ChunkGrid grid(batch, scan.chunk);
  return forward_chunked(ctx, scan, grid.dims(dims, scan.chunk), h0, ht);
}

DecayedScanGrads decayed_scan_vjp(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                                  const Tensor& initial, const Tensor& dy, const Tensor& d_final,
                                  bool chunked) {
  const SsdDims dims = dims_of(scan, batch);
  DecayedScanGrads grads{.du = ctx.empty(scan.u.shape()),
                         .db = ctx.empty(scan.b.shape()),
                         .dc = ctx.empty(scan.c.shape()),
                         .d_initial = {}};
  if (initial.defined()) grads.d_initial = ctx.empty(initial.shape());
  if (chunked) {
    const ChunkGrid grid(batch, scan.chunk);
    vjp_chunked(ctx, scan, grid.dims(dims, scan.chunk), initial, dy, d_final, grads);
  } else {
    vjp_recurrent(ctx, scan, dims, initial, dy, d_final, grads);
  }
  return grads;
}

Tensor decayed_scan_tail(Context& ctx, const DecayedScan& scan, const SequenceBatch& batch,
                         const Tensor& final_state, const Tensor& d_final) {
  Tensor tail = ctx.empty({batch.sequences(), scan.heads});
  StateDots::run(ctx, "ssd", dims_of(scan, batch), const_rows(d_final, batch.sequences()).data(),
                 const_rows(final_state, batch.sequences()).data(), tail.f32());
  return tail;
}

}  // namespace braid
