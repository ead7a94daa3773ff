#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Tokens to a cell of the chunked form, counted from a sequence's start: decays within one are
/// taken relative to its middle, and 8 tokens of ln w >= -8 keep them within float32.
inline constexpr int64_t kWkv7Chunk = 16;
inline constexpr int64_t kWkv7MaxHead = 128;

/// Inputs, y and gradients are (T, H P), contiguous. Host pointers.
struct Wkv7Dims {
  int64_t tokens, sequences, heads, head_dim;
  const int64_t* offsets;  // (S + 1)
  const int64_t* starts;   // (S)
  const int64_t* firsts;   // (S + 1), first cell of each sequence; null where no cells are kept

  int64_t width() const { return heads * head_dim; }
  int64_t state() const { return head_dim * head_dim; }
  /// Rows of the cell that begins `done` rows after sequence s did, of `length` rows in all.
  int64_t cell_rows(int64_t s, int64_t done, int64_t length) const {
    const int64_t whole = kWkv7Chunk - (starts[s] + done) % kWkv7Chunk;
    return whole < length - done ? whole : length - done;
  }
};

struct Wkv7Operands {
  const float *r, *log_decay, *k, *v, *a, *b;
};

/// What the vjp needs of the forward pass beside its operands.
struct Wkv7Kept {
  float* reads;   // (T, H P), a_t^T S_{t-1}
  float* states;  // (cells, H, P, P), at the beginning of each
};

struct Wkv7Grads {
  float *dr, *d_log_decay, *dk, *dv, *da, *db;
};

namespace cpu {

/// h0 and ht: a state per sequence; h0[s] may be null (zero), ht[s] may be h0[s]. Members of `kept`
/// may be null. Kernels for cells need dims.firsts. `scratch` is (threads, wkv7_scratch).
int64_t wkv7_scratch(const Wkv7Dims& dims);

/// The recurrence, token by token.
void wkv7_scan(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
               const float* const* h0, float* const* ht, const Wkv7Kept& kept, float* y);
void wkv7_scan_vjp(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                   const Wkv7Kept& kept, const float* dy, const float* const* d_final,
                   float* const* d_initial, float* scratch, const Wkv7Grads& grads);

/// The same cell by cell, in products of matrices. `last` are the final states.
void wkv7_chunks(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                 const float* const* h0, float* const* ht, const Wkv7Kept& kept, float* scratch,
                 float* y);
void wkv7_chunks_vjp(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                     const Wkv7Kept& kept, const float* dy, const float* const* last,
                     const float* const* d_final, float* const* d_initial, float* scratch,
                     const Wkv7Grads& grads);

}  // namespace cpu
}  // namespace braid
