#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

struct Wkv7OutputDims {
  int64_t rows, heads, head_dim;
  float eps;
  /// Rows whose contributions to the vectors' gradients are added up first; then the blocks are, in
  /// order.
  static constexpr int64_t kBlockRows = 32;
  int64_t width() const { return heads * head_dim; }
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
};

struct Wkv7OutputPointers {
  const float *y, *r, *k, *v, *gate, *r_k, *weight, *bias;
};

struct Wkv7OutputGrads {
  float *y, *r, *k, *v, *gate;
  float* vectors;  // (3, H P): of r_k, weight, bias
};

namespace cpu {

void wkv7_output(ThreadPool& threads, const Wkv7OutputDims& dims, const Wkv7OutputPointers& in,
                 float* out);
/// `partial` is scratch of (blocks, 3, H P).
void wkv7_output_vjp(ThreadPool& threads, const Wkv7OutputDims& dims, const Wkv7OutputPointers& in,
                     const float* d_out, float* partial, const Wkv7OutputGrads& grads);

}  // namespace cpu
}  // namespace braid
