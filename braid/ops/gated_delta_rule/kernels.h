#pragma once

#include <cstdint>

#include "braid/ops/ssd/kernels.h"

namespace braid {

/// Sizes of one call; strides are elements between rows. y, gradients, log_decay and beta are
/// dense.
struct GatedDeltaDims {
  int64_t tokens, sequences;
  int64_t heads, key_heads, key_dim, value_dim;  // H, G, K, V
  int64_t q_stride, k_stride, v_stride;
  const int64_t* offsets = nullptr;  // (S + 1) on the host

  int64_t heads_per_key() const { return heads / key_heads; }
};

struct GatedDeltaChunkDims {
  GatedDeltaDims base;
  int64_t chunk, chunks;
  const SsdChunk* cells;  // (chunks), in the order of the rows, on the host
  const int64_t* firsts;  // (S + 1): cells [firsts[s], firsts[s + 1]) are those of sequence s
};

/// What both passes read.
struct GatedDeltaOperands {
  const float *q, *k, *v, *log_decay, *beta;
};

/// What the chunked form leaves behind; each may be null: y (T, H V), e (T, H V), and the states
/// that chunks start from, (chunks, H, K, V).
struct GatedDeltaOutputs {
  float *y, *e, *starts;
};

struct GatedDeltaGrads {
  float *dq, *dk, *dv, *d_log_decay, *d_beta;
};

namespace cpu {

/// Floats of scratch per worker.
int64_t gated_delta_scan_scratch(const GatedDeltaDims& dims);
int64_t gated_delta_chunk_scratch(const GatedDeltaChunkDims& dims);

/// Token by token. h0[s] null: zero; ht[s] may be the same memory. Element y[t, h, j] is one order
/// of operations wherever a sequence is cut.
void gated_delta_scan(ThreadPool& threads, const GatedDeltaDims& dims, const GatedDeltaOperands& in,
                      const float* const* h0, float* const* ht, float* scratch, float* y);

/// Chunk by chunk. Null ht[s]: not wanted.
void gated_delta_chunks(ThreadPool& threads, const GatedDeltaChunkDims& dims,
                        const GatedDeltaOperands& in, const float* const* h0, float* const* ht,
                        float* scratch, const GatedDeltaOutputs& out);

/// From the last chunk to the first, with e and starts as above. Null d_final[s]: zero; null
/// d_initial[s]: not wanted.
void gated_delta_chunks_vjp(ThreadPool& threads, const GatedDeltaChunkDims& dims,
                            const GatedDeltaOperands& in, const float* starts, const float* e,
                            const float* dy, int64_t dy_stride, const float* const* d_final,
                            float* const* d_initial, float* scratch, const GatedDeltaGrads& grads);

}  // namespace cpu
}  // namespace braid
