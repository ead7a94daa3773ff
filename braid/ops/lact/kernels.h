#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Sizes of one call; strides are elements between rows, all else is dense.
struct LactDims {
  int64_t tokens, sequences;
  int64_t heads, head_dim, hidden;  // H, D, F
  int64_t chunk;                    // C
  bool momentum, muon;
  int64_t q_stride, k_stride, v_stride;
  const int64_t* offsets = nullptr;  // (S + 1) on the host
  const int64_t* starts = nullptr;   // (S) on the host

  int64_t matrix() const { return head_dim * hidden; }
  int64_t rows(int i) const { return i == 1 ? hidden : head_dim; }
  int64_t columns(int i) const { return i == 1 ? head_dim : hidden; }
  int64_t state() const { return momentum ? 9 * matrix() + 1 : 6 * matrix(); }
  /// Whether sequence s starts from the learned weights rather than from h0.
  bool fresh(int64_t s, const float* h0) const {
    return h0 == nullptr || (starts[s] == 0 && offsets[s + 1] > offsets[s]);
  }
};

struct LactOperands {
  const float *q, *k, *v, *lr;
  const float* momentum;  // null without momentum
  const float* w[3];
};

/// Dense, of the operands' shapes; every element is written.
struct LactGrads {
  float *dq, *dk, *dv, *d_lr;
  float* d_momentum;  // null without momentum
  float* d_w[3];
};

namespace cpu {

/// Floats of scratch per worker.
int64_t lact_scratch(const LactDims& dims);
int64_t lact_vjp_scratch(const LactDims& dims);

/// h0[s] null: fresh. ht[s] may be the same memory.
void lact(ThreadPool& threads, const LactDims& dims, const LactOperands& in, const float* const* h0,
          float* const* ht, float* scratch, float* y);

/// Null d_final[s]: zero; null d_initial[s]: not wanted.
void lact_vjp(ThreadPool& threads, const LactDims& dims, const LactOperands& in,
              const float* const* h0, const float* dy, int64_t dy_stride,
              const float* const* d_final, float* const* d_initial, float* scratch,
              const LactGrads& grads);

}  // namespace cpu
}  // namespace braid
