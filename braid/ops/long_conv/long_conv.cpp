#include "braid/ops/long_conv/long_conv.h"

#include <algorithm>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/long_conv/kernels.h"

namespace braid {
namespace {

using PackKernel = Kernel<&cpu::long_conv_pack>;
using BlockedKernel = Kernel<&cpu::long_conv>;
using DirectKernel = Kernel<&cpu::long_conv_direct>;
using WholeKernel = Kernel<&cpu::long_conv_whole>;
using VjpKernel = Kernel<&cpu::long_conv_vjp>;

// Where one transform of the sequence is quicker than sums over its blocks (measured).
constexpr int64_t kWholeBeyond = 32768;

int64_t longest(const SequenceBatch& batch) {
  int64_t length = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) length = std::max(length, batch.length(s));
  return length;
}

// The taps that tokens of this call reach, up to a whole block: all that any output depends on.
int64_t reached(int64_t taps, const SequenceBatch& batch) {
  const int64_t blocks = (longest(batch) + kLongConvBlock - 1) / kLongConvBlock;
  return std::min(taps, std::max<int64_t>(1, blocks) * kLongConvBlock);
}

Tensor scratch_of(Context& ctx, size_t bytes_of_worker) {
  return ctx.empty({ctx.threads().size() * static_cast<int64_t>(bytes_of_worker)}, DType::kU8);
}

std::byte* bytes_of(const Tensor& scratch) { return static_cast<std::byte*>(scratch.raw()); }

void check_filter(const Tensor& k, const Tensor& d) {
  check(k.rank() == 2 && k.dim(0) > 0 && k.dim(1) > 0 && k.contiguous() && k.dtype() == DType::kF32,
        "long_conv: k is {} {}, want contiguous f32 (L, C)", to_string(k.dtype()),
        to_string(k.shape()));
  check(d.shape() == Shape{k.dim(1)} && d.dtype() == DType::kF32,
        "long_conv: d is {} {}, want f32 ({})", to_string(d.dtype()), to_string(d.shape()),
        k.dim(1));
}

LongConvDims make_dims(const Tensor& u, int64_t taps, int64_t channels,
                       const SequenceBatch& batch) {
  check(u.rank() == 2 && u.rows() == batch.tokens() && u.dim(1) == channels &&
            u.dtype() == DType::kF32,
        "long_conv: u is {} {}, want f32 ({}, {})", to_string(u.dtype()), to_string(u.shape()),
        batch.tokens(), channels);
  return {.channels = channels,
          .taps = taps,
          .u_stride = u.row_stride(),
          .sequences = batch.sequences(),
          .longest = longest(batch)};
}

LongConvWholeDims whole_dims(const Tensor& u, const Tensor& k, const SequenceBatch& batch) {
  return {.tokens = batch.tokens(),
          .sequences = batch.sequences(),
          .channels = k.dim(1),
          .taps = k.dim(0),
          .u_stride = u.row_stride(),
          .longest = longest(batch),
          .offsets = batch.offsets.data()};
}

std::vector<LongConvSequence> whole_sequences(const SequenceBatch& batch) {
  std::vector<LongConvSequence> sequences;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    sequences.push_back({.row = batch.offsets[static_cast<size_t>(s)], .length = batch.length(s)});
  }
  return sequences;
}

Tensor blocked(Context& ctx, const LongConvDims& dims, const Tensor& u,
               const LongConvFilter& filter, const std::vector<LongConvSequence>& sequences) {
  Tensor y = ctx.empty(u.shape());
  const Tensor scratch = scratch_of(ctx, cpu::long_conv_scratch(dims));
  const LongConvTaps taps{
      .head = filter.head().f32(), .spectra = filter.spectra().f32(), .d = filter.d().f32()};
  BlockedKernel::run(ctx, "long_conv", dims, sequences.data(), taps, u.f32(), y.f32(),
                     bytes_of(scratch));
  return y;
}

Tensor direct(Context& ctx, const LongConvDims& dims, const Tensor& u, const Tensor& k,
              const Tensor& d, const std::vector<LongConvSequence>& sequences) {
  Tensor y = ctx.empty(u.shape());
  DirectKernel::run(ctx, "long_conv", dims, sequences.data(), k.f32(), d.f32(), u.f32(), y.f32());
  return y;
}

Tensor whole(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
             const SequenceBatch& batch) {
  const LongConvWholeDims dims = whole_dims(u, k, batch);
  Tensor y = ctx.empty(u.shape());
  const Tensor scratch = scratch_of(ctx, cpu::long_conv_whole_scratch(dims));
  WholeKernel::run(ctx, "long_conv", dims, k.f32(), d.f32(), u.f32(), y.f32(), bytes_of(scratch));
  return y;
}

Grads vjp(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
          const SequenceBatch& batch, const Tensor& dy) {
  LongConvWholeDims dims = whole_dims(u, k, batch);
  dims.dy_stride = dy.row_stride();
  dims.taps = reached(dims.taps, batch);
  const bool all = dims.taps == k.dim(0);
  Tensor dk = all ? ctx.empty(k.shape()) : ctx.zeros(k.shape());
  Tensor du = ctx.empty(u.shape()), dd = ctx.empty(d.shape());
  const Tensor scratch = scratch_of(ctx, cpu::long_conv_whole_scratch(dims));
  VjpKernel::run(ctx, "long_conv", dims, k.f32(), d.f32(), u.f32(), dy.f32(), du.f32(), dk.f32(),
                 dd.f32(), bytes_of(scratch));
  return {du, dk, dd};
}

Form choose(const Context& ctx, const LongConvDims& dims) {
  if (ctx.form() != Form::kAuto) return ctx.form();
  return ctx.tape() != nullptr && dims.longest > kWholeBeyond ? Form::kParallel : Form::kChunked;
}

}  // namespace

LongConvFilter LongConvFilter::make(Context& ctx, const Tensor& k, const Tensor& d) {
  check_filter(k, d);
  const LongConvDims dims{.channels = k.dim(1), .taps = k.dim(0)};
  const auto zeros = [](Shape shape) {
    return host_tensor(std::vector<float>(static_cast<size_t>(shape.count())), shape);
  };
  // Outside the arena: a filter may outlive the context, and be dropped by another thread.
  LongConvFilter filter;
  filter.taps_ = dims.taps;
  filter.head_ = zeros({kLongConvBlock, dims.channels});
  filter.spectra_ = zeros({dims.channels, dims.blocks(), 2, kLongConvBlock});
  filter.d_ = zeros({dims.channels});
  std::copy_n(d.f32(), dims.channels, filter.d_.f32());
  const Tensor scratch = scratch_of(ctx, cpu::long_conv_pack_scratch(dims));
  PackKernel::run(ctx, "long_conv", dims, k.f32(), filter.head_.f32(), filter.spectra_.f32(),
                  bytes_of(scratch));
  return filter;
}

Tensor long_conv(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                 const SequenceBatch& batch) {
  check_filter(k, d);
  const Tensor taps = k.slice_rows(0, reached(k.dim(0), batch));
  const LongConvDims dims = make_dims(u, taps.dim(0), k.dim(1), batch);
  Tensor y;
  switch (choose(ctx, dims)) {
    case Form::kParallel:
      y = whole(ctx, u, taps, d, batch);
      break;
    case Form::kRecurrent:
      y = direct(ctx, dims, u, taps, d, whole_sequences(batch));
      break;
    default:
      y = blocked(ctx, dims, u, LongConvFilter::make(ctx, taps, d), whole_sequences(batch));
  }
  if (Tape* tape = ctx.tape()) {
    tape->record({u, k, d}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      return vjp(inner, u, k, d, batch, dy);
    });
  }
  return y;
}

Tensor long_conv(Context& ctx, const Tensor& u, const LongConvFilter& filter,
                 const SequenceBatch& batch) {
  check(ctx.tape() == nullptr || !Tape::tracks(u),
        "long_conv: a prepared filter has no gradient; hand in k and d in training");
  const LongConvDims dims = make_dims(u, filter.taps(), filter.channels(), batch);
  return blocked(ctx, dims, u, filter, whole_sequences(batch));
}

Tensor long_conv(Context& ctx, const Tensor& u, const LongConvFilter& filter,
                 const SequenceBatch& batch, std::span<const LongConvState> states) {
  check(ctx.tape() == nullptr || !Tape::tracks(u),
        "long_conv: a carried state has no gradient; leave the states out in training");
  LongConvDims dims = make_dims(u, filter.taps(), filter.channels(), batch);
  dims.carried = true;
  check(std::ssize(states) == batch.sequences(), "long_conv: {} states, want {}", states.size(),
        batch.sequences());
  std::vector<LongConvSequence> sequences = whole_sequences(batch);
  for (size_t s = 0; s < sequences.size(); ++s) {
    LongConvSequence& sequence = sequences[s];
    sequence.start = batch.starts[s];
    sequence.block = states[s].block;
    sequence.pages = states[s].spectra.pages;
    const int64_t held = states[s].spectra.count * kPageTokens,
                  end = sequence.start + sequence.length;
    check(sequence.start >= 0 && sequence.block != nullptr && held >= end,
          "long_conv: the state of sequence {} holds {} tokens, want {}", s, held, end);
  }
  return blocked(ctx, dims, u, filter, sequences);
}

}  // namespace braid
