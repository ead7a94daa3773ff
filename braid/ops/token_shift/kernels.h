#pragma once

#include <array>
#include <cstdint>

namespace braid {

class ThreadPool;

inline constexpr int64_t kTokenShiftMaxOutputs = 8;

struct TokenShiftDims {
  int64_t tokens, sequences, width, outputs;
  int64_t x_stride;        // elements between rows of x; everything else is contiguous
  const int64_t* offsets;  // (S + 1), on the host
  /// Rows whose contributions to d_mu are added up first; then the blocks are, in order.
  static constexpr int64_t kBlockRows = 32;
  int64_t blocks() const { return (tokens + kBlockRows - 1) / kBlockRows; }
};

/// One pointer for each output; only the first `outputs` are used.
using TokenShiftInputs = std::array<const float*, kTokenShiftMaxOutputs>;
using TokenShiftOutputs = std::array<float*, kTokenShiftMaxOutputs>;

namespace cpu {

/// h0[s] may be null (zero); ht[s] may be h0[s].
void token_shift(ThreadPool& threads, const TokenShiftDims& dims, const float* x,
                 const TokenShiftInputs& mu, const float* const* h0, float* const* ht,
                 const TokenShiftOutputs& y);
/// Writes dx (T, D), d_mu (M, D) and, where they are not null, d_initial[s] (D); d_final[s] may be
/// null (zero). `partial` is scratch of (blocks, M, D).
void token_shift_vjp(ThreadPool& threads, const TokenShiftDims& dims, const float* x,
                     const TokenShiftInputs& mu, const float* const* h0, const TokenShiftInputs& dy,
                     const float* const* d_final, float* partial, float* dx, float* d_mu,
                     float* const* d_initial);

}  // namespace cpu
}  // namespace braid
