#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Sizes of one call; strides are elements between rows.
struct SsdDims {
  int64_t tokens, sequences;
  int64_t heads, head_dim, groups, state;  // H, P, G, N
  int64_t x_stride, b_stride, c_stride, y_stride;
  const int64_t* offsets = nullptr;  // (S + 1) on the host

  int64_t heads_per_group() const { return heads / groups; }
};

struct SsdStepDims {
  int64_t tokens, heads, dt_stride;
  float dt_min, dt_max;
};

/// Which way a scan goes through a sequence, and what it scales its input rows by.
struct SsdScan {
  bool reverse = false;
  const float* scale = nullptr;  // (T, H) or null: factor of u
};

struct SsdColumns {
  bool reverse = false;
  const float* k_scale = nullptr;  // (T, H) or null
  const float* q_scale = nullptr;
  int64_t k_stride, q_stride, b_stride;
};

struct SsdGradDims {
  SsdDims base;
  int64_t dt_stride, dy_stride;
  float dt_min, dt_max;
};

/// A cell of the grid of chunks: `count` <= chunk tokens of one sequence from row `begin` on.
struct SsdChunk {
  int64_t sequence, begin, count;
};

struct SsdChunkDims {
  SsdDims base;
  int64_t chunk, chunks;
  const SsdChunk* cells;  // (chunks), in the order of the rows, on the host
  const int64_t* firsts;  // (S + 1): cells [firsts[s], firsts[s + 1]) are those of sequence s
};

namespace cpu {

/// dt (T, H) <- clamp(softplus(dt_raw + dt_bias)), log_decay (T, H) <- -exp(A_log) dt,
/// decay (T, H) <- exp(log_decay). rate (H) <- -exp(A_log).
void ssd_discretise(ThreadPool& threads, const SsdStepDims& dims, const float* dt_raw,
                    const float* dt_bias, const float* a_log, float* rate, float* dt,
                    float* log_decay, float* decay);

/// Floats of scratch per worker for `ssd_scan_rows` and `ssd_scan_columns`.
int64_t ssd_scan_scratch(const SsdDims& dims);

/// S <- decay S + (scale u) b^T;  y = S c (+ skip[h] u).        S (P, N) per sequence and head.
///
/// u, y (T, H P); b, c (T, G N); decay (T, H); skip (H) or null. The state starts from h0[s] (zero
/// where null) and ends in ht[s] (dropped where null), which may be the same memory.
/// Backwards, token t takes decay[t + 1], the last one none: the adjoint's recurrence.
/// Element y[t, h, p] is one order of operations wherever a sequence is cut.
void ssd_scan_rows(ThreadPool& threads, const SsdDims& dims, const SsdScan& scan, const float* u,
                   const float* b, const float* c, const float* decay, const float* skip,
                   const float* const* h0, float* const* ht, float* scratch, float* y);

/// The same recurrence from k, read along the other axis:
/// z[t, g, n] = sum over the heads h of group g and p of (q_scale q)[t, h, p] S_t[h, p, n].
/// k, q (T, H P); b, z (T, G N), z dense.
void ssd_scan_columns(ThreadPool& threads, const SsdDims& dims, const SsdColumns& scan,
                      const float* k, const float* q, const float* b, const float* decay,
                      const float* const* h0, float* scratch, float* z);

/// What is left of the vjp once du (T, H P) is known, token by token from the end of each sequence:
///   m_t = m_{t+1} + <dy, y - D x> - <dt x, du>, m_{T+1} = tail[s, h];  dx = dt du + D dy;
/// d_dt_raw (T, H) and the gradients of dt_bias, A_log and D (H) follow from m. See README.md.
/// d and d_d may be null.
int64_t ssd_token_scratch(const SsdDims& dims);
void ssd_token_grads(ThreadPool& threads, const SsdGradDims& dims, const float* x, const float* y,
                     const float* dy, const float* du, const float* dt, const float* dt_raw,
                     const float* dt_bias, const float* a_log, const float* d, const float* tail,
                     float* scratch, float* dx, float* d_dt_raw, float* d_dt_bias, float* d_a_log,
                     float* d_d);

/// tail (S, H) <- <a[s, h], b[s, h]> over P N; null entries count as zero.
void ssd_state_dots(ThreadPool& threads, const SsdDims& dims, const float* const* a,
                    const float* const* b, float* tail);

/// h[s, h] *= decay of the sequence's first token, for the gradient of the initial state.
void ssd_scale_states(ThreadPool& threads, const SsdDims& dims, const float* decay,
                      float* const* h);

/// Floats of scratch per worker for the kernels below. README.md derives them.
int64_t ssd_chunk_scratch(const SsdChunkDims& dims);

/// With a_t the running sum of log_decay inside a chunk, inclusive, per chunk and head (dt may be
/// null: 1):
/// sums (chunks, H, P, N) <- sum_t exp(a_end - a_t) dt_t x_t b_t^T, or backwards, with no dt,
/// sum_t exp(a_t) x_t b_t^T. totals (chunks, H) <- exp(a_end). Strides of x and b are those of
/// dims.
void ssd_chunk_sums(ThreadPool& threads, const SsdChunkDims& dims, bool reverse, const float* x,
                    const float* dt, const float* b, const float* log_decay, float* scratch,
                    float* sums, float* totals);

/// Replaces the sums by the states that chunks start from (backwards: end with), going through each
/// sequence from h0 to ht: S <- totals S + sums. Null h0[s]: zero; null ht[s]: not wanted.
void ssd_chunk_pass(ThreadPool& threads, const SsdChunkDims& dims, bool reverse,
                    const float* totals, const float* const* h0, float* const* ht, float* sums);

/// y (T, H P) from the states that the chunks start from.
void ssd_chunk_outputs(ThreadPool& threads, const SsdChunkDims& dims, const float* x,
                       const float* dt, const float* b, const float* c, const float* log_decay,
                       const float* skip, const float* starts, float* scratch, float* y);

/// du (T, H P), db and dc (T, G N), dense, from the states at the starts of the chunks and their
/// adjoints at the ends.
void ssd_chunk_grads(ThreadPool& threads, const SsdChunkDims& dims, const float* x, const float* dt,
                     const float* b, const float* c, const float* log_decay, const float* dy,
                     int64_t dy_stride, const float* starts, const float* ends, float* scratch,
                     float* du, float* db, float* dc);

}  // namespace cpu
}  // namespace braid
