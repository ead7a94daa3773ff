#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Sizes of one call; strides are elements between rows, all else is dense.
struct TttDims {
  int64_t tokens, sequences;
  int64_t heads, head_dim, hidden;  // H, D, F (0: linear)
  int64_t mini_batch, steps;        // K, n
  bool norm, residual;
  float eps;
  int64_t q_stride, k_stride, v_stride;
  const int64_t* offsets = nullptr;  // (S + 1) on the host
  const int64_t* starts = nullptr;   // (S) on the host

  /// Whether sequence s starts from the learned weights rather than from h0.
  bool fresh(int64_t s, const float* h0) const {
    return h0 == nullptr || (starts[s] == 0 && offsets[s + 1] > offsets[s]);
  }
  int layers() const { return hidden > 0 ? 2 : 1; }
  int64_t width() const { return hidden > 0 ? hidden : head_dim; }  // of the first layer's output
  int64_t in(int layer) const { return layer == 0 ? head_dim : hidden; }
  int64_t out(int layer) const { return layer + 1 == layers() ? head_dim : hidden; }

  /// Floats of one head's state: its fast weights, and one step's rows.
  int64_t weights() const {
    return hidden > 0 ? (2 * hidden + 1) * head_dim + hidden : (head_dim + 1) * head_dim;
  }
  int64_t step_rows() const { return mini_batch * (hidden > 0 ? 2 * hidden + head_dim : head_dim); }
  int64_t state() const { return weights() + mini_batch * head_dim + steps * step_rows(); }
};

/// The learned weights that fresh sequences start from; w[1] and b[1] are null for a linear model.
struct TttWeights {
  const float *w[2], *b[2];
};

struct TttOperands {
  const float *q, *k, *v, *lr, *rate;
  const float *norm_weight, *norm_bias;  // null without the norm
  TttWeights fresh;
};

/// Dense, of the operands' shapes; every element is written.
struct TttGrads {
  float *dq, *dk, *dv, *d_lr;
  float* d_rate;                       // (H, K): one row a head
  float *d_norm_weight, *d_norm_bias;  // null without the norm
  float *d_w[2], *d_b[2];
};

namespace cpu {

/// Floats of scratch per worker.
int64_t ttt_scratch(const TttDims& dims);
int64_t ttt_vjp_scratch(const TttDims& dims);

/// h0[s] null: fresh. ht[s] may be the same memory.
void ttt(ThreadPool& threads, const TttDims& dims, const TttOperands& in, const float* const* h0,
         float* const* ht, float* scratch, float* y);

/// Null d_final[s]: zero; null d_initial[s]: not wanted.
void ttt_vjp(ThreadPool& threads, const TttDims& dims, const TttOperands& in,
             const float* const* h0, const float* dy, int64_t dy_stride,
             const float* const* d_final, float* const* d_initial, float* scratch,
             const TttGrads& grads);

}  // namespace cpu
}  // namespace braid
