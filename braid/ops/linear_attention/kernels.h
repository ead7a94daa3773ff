#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Strides are elements between rows.
struct DecayDims {
  int64_t tokens, heads;
  int64_t stride;  // of log_decay: 0 where it is constant
};

struct DecayGradDims {
  int64_t tokens, sequences, heads, value_dim;
  int64_t v_stride, dy_stride;       // y and dv are dense
  const int64_t* offsets = nullptr;  // (S + 1) on the host
};

struct DivideHeadsDims {
  int64_t tokens, heads, value_dim;
  int64_t y_stride, n_stride, dout_stride;
  float eps;
};

namespace cpu {

/// log (T, H) <- log_decay, or 0 where it is null; decay (T, H) <- exp(log).
void decays(ThreadPool& threads, const DecayDims& dims, const float* log_decay, float* log,
            float* decay);

/// d_log (T, H) <- m_t = m_{t+1} + <dy_t, y_t> - <v_t, dv_t> from m_{T+1} = tail[s, h]: see
/// ops/ssd/README.md. Where `d_constant` (H) is not null it gets the sums of d_log over all tokens.
void decay_grads(ThreadPool& threads, const DecayGradDims& dims, const float* v, const float* y,
                 const float* dy, const float* dv, const float* tail, float* d_log,
                 float* d_constant);

/// out (T, H V) <- y / (n + eps), dense.
void divide_heads(ThreadPool& threads, const DivideHeadsDims& dims, const float* y, const float* n,
                  float* out);
/// dy (T, H V) <- dout / (n + eps), dn (T, H) <- -<dout, y> / (n + eps)^2
void divide_heads_vjp(ThreadPool& threads, const DivideHeadsDims& dims, const float* y,
                      const float* n, const float* dout, float* dy, float* dn);

}  // namespace cpu
}  // namespace braid
