#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct Wkv7InputsDims {
  int64_t rows, heads, head_dim;
  bool mix_values;
  /// Rows whose contributions to d_k_k and d_k_a are added up first; then the blocks are, in order.
  static constexpr int64_t kBlockRows = 32;
  int64_t width() const { return heads * head_dim; }
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
};

struct Wkv7RawPointers {
  const float *decay, *k, *rate, *k_k, *k_a, *v, *v_first, *v_mix;
};

struct Wkv7PreparedPointers {
  float *log_decay, *k, *a, *b, *v;
};

struct Wkv7PreparedGrads {
  const float *log_decay, *k, *a, *b, *v;
};

struct Wkv7RawGrads {
  float *decay, *k, *rate, *v, *v_first, *v_mix;
  float* vectors;  // (2, H P): of k_k, of k_a
};

namespace cpu {

void wkv7_inputs(ThreadPool& threads, const Wkv7InputsDims& dims, const Wkv7RawPointers& in,
                 const Wkv7PreparedPointers& out);
/// `partial` is scratch of (blocks, 2, H P).
void wkv7_inputs_vjp(ThreadPool& threads, const Wkv7InputsDims& dims, const Wkv7RawPointers& in,
                     const Wkv7PreparedGrads& dy, float* partial, const Wkv7RawGrads& dx);

}  // namespace cpu
}  // namespace braid
