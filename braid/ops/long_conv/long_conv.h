#pragma once

#include <cstdint>
#include <span>

#include "braid/core/context.h"
#include "braid/core/paged.h"
#include "braid/core/sequence_batch.h"

namespace braid {

/// The taps of a long convolution as inference reads them: those of the current block of
/// kPageTokens tokens as they are, and one spectrum for each block of lags. A handle; immutable, so
/// it may be shared by threads. Memory: 8 bytes a tap and channel.
class LongConvFilter {
 public:
  LongConvFilter() = default;
  /// k (L, C) and d (C) as in `long_conv`. Costs one transform of 128 a block and channel.
  static LongConvFilter make(Context& ctx, const Tensor& k, const Tensor& d);

  int64_t taps() const { return taps_; }
  int64_t channels() const { return d_.count(); }
  const Tensor& head() const { return head_; }        // (kPageTokens, C)
  const Tensor& spectra() const { return spectra_; }  // (C, blocks, 2, kPageTokens)
  const Tensor& d() const { return d_; }              // (C)

 private:
  int64_t taps_ = 0;
  Tensor head_, spectra_, d_;
};

/// What one sequence keeps between calls. `block` (2, kPageTokens, C) holds the inputs of the block
/// being read and what earlier blocks add to its outputs; `spectra` has a page of 2 C floats a
/// token, written when its block is complete.
struct LongConvState {
  float* block = nullptr;
  PageTable spectra;
};

/// Causal depthwise convolution with as many taps as there may be tokens:
///
///   y[t, c] = sum_{j < L, j <= t} k[j, c] u[t - j, c] + d[c] u[t, c]
///
/// u (N, C) float32, rows may be strided, sequences packed as in `batch`, each from its own row 0;
/// k (L, C) and d (C) contiguous; y (N, C) new and dense. Nothing aliases.
/// vjp: u, k and d, by transforms of the whole sequence, O(T log T) a channel.
///
/// Three forms. Blocked (kChunked, and kAuto): the sequence is cut into blocks of B = kPageTokens
/// on its own grid; a token sums its block directly, B / 2 multiply-adds, on top of what earlier
/// blocks add, which is one inverse transform of 2 B a block over products of spectra: T / (2 B)
/// complex multiply-adds a token, two transforms of 128 a block. Every output is the same chain of
/// operations wherever the sequence is cut, so bits depend on neither cut, batch nor threads.
/// Whole (kParallel, and kAuto with a tape beyond 32768 tokens): one transform of the whole
/// sequence. Direct (kRecurrent): the sum as written, O(T) a token.
///
/// Source: Poli et al., arXiv:2302.10866; partitioned convolution: Stockham 1966, Kulp 1988.
Tensor long_conv(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                 const SequenceBatch& batch);

/// The same from a prepared filter, with the bits of the blocked form; not differentiable.
Tensor long_conv(Context& ctx, const Tensor& u, const LongConvFilter& filter,
                 const SequenceBatch& batch);

/// The same for sequences that continue at batch.starts: states[s] is read and left as after the
/// last row. A decoded token costs B multiply-adds a channel; every B-th one also the sum over all
/// earlier blocks, which reads 2 C floats for each token of the past: B times less than attention
/// reads. Not differentiable.
Tensor long_conv(Context& ctx, const Tensor& u, const LongConvFilter& filter,
                 const SequenceBatch& batch, std::span<const LongConvState> states);

}  // namespace braid
