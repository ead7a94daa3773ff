#pragma once

#include <cstddef>
#include <cstdint>

#include "braid/core/paged.h"

namespace braid {

class ThreadPool;

/// A block of the grid is a page, so that the page a block's spectrum goes to belongs to the
/// sequence that completes it, whatever forks there are.
inline constexpr int64_t kLongConvBlock = kPageTokens;
/// Floats of the spectrum of one block of one channel: 64 real parts, 64 imaginary ones. The last
/// bin of a real transform is real, and takes the place of the first one's imaginary part.
inline constexpr int64_t kLongConvSpectrum = 2 * kLongConvBlock;

/// Strides in elements between rows; other tensors are dense.
struct LongConvDims {
  int64_t channels, taps;
  int64_t u_stride;
  int64_t sequences;
  int64_t longest;       // tokens of one sequence of this call
  bool carried = false;  // spectra lie in the pages of states, else in scratch

  /// Blocks of lags: block j >= 1 joins inputs and outputs j blocks apart.
  int64_t blocks() const { return taps < 2 ? 0 : (taps - 2) / kLongConvBlock + 1; }
};

/// One sequence of the batch. Without a state `block` and `pages` are null and `start` is 0.
struct LongConvSequence {
  int64_t row, length, start;
  float* block;
  void* const* pages;
};

/// See LongConvFilter.
struct LongConvTaps {
  const float *head, *spectra, *d;
};

struct LongConvWholeDims {
  int64_t tokens, sequences, channels, taps;
  int64_t u_stride, dy_stride = 0;
  int64_t longest;
  const int64_t* offsets = nullptr;  // (S + 1)
};

namespace cpu {

/// Bytes of scratch a worker needs; scratch is aligned to 64 bytes.
size_t long_conv_pack_scratch(const LongConvDims& dims);
size_t long_conv_scratch(const LongConvDims& dims);
size_t long_conv_whole_scratch(const LongConvWholeDims& dims);

/// head (64, C) and spectra (C, blocks, 2, 64) from k (taps, C).
void long_conv_pack(ThreadPool& threads, const LongConvDims& dims, const float* k, float* head,
                    float* spectra, std::byte* scratch);

/// The blocked form. u, y (N, C).
void long_conv(ThreadPool& threads, const LongConvDims& dims, const LongConvSequence* sequences,
               const LongConvTaps& taps, const float* u, float* y, std::byte* scratch);

/// The direct form of whole sequences; k (taps, C).
void long_conv_direct(ThreadPool& threads, const LongConvDims& dims,
                      const LongConvSequence* sequences, const float* k, const float* d,
                      const float* u, float* y);

/// Transforms of whole sequences: y (N, C); and du (N, C), dk (taps, C), dd (C) from dy.
void long_conv_whole(ThreadPool& threads, const LongConvWholeDims& dims, const float* k,
                     const float* d, const float* u, float* y, std::byte* scratch);
void long_conv_vjp(ThreadPool& threads, const LongConvWholeDims& dims, const float* k,
                   const float* d, const float* u, const float* dy, float* du, float* dk, float* dd,
                   std::byte* scratch);

}  // namespace cpu
}  // namespace braid
