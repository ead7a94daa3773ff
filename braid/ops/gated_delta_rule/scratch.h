#pragma once

#include <cstdint>

#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/ssd/scan.h"

namespace braid::cpu {

/// One worker's matrices for a chunk of Q tokens: which pass uses what is said there.
struct DeltaMatrices {
  int64_t q, k, v;                      // row strides: Q, K, V rounded up
  float* decays;                        // (4, q)
  float *kt, *kk, *qk, *decay, *a, *m;  // (K, q), then (Q, q) each
  float *g, *n;                         // (Q, q)
  float *x, *scaled_v;                  // (Q, v)
  float *xs, *scaled_k;                 // (Q, k)
  float *et, *st;                       // (V, q), (V, k)
  float *d_gamma, *d_beta, *factor;     // (q)
  float* state;                         // (heads of a key head, K, V)

  DeltaMatrices(const GatedDeltaChunkDims& dims, float* base)
      : q(round_up(dims.chunk, kMaxLanes)),
        k(round_up(dims.base.key_dim, kMaxLanes)),
        v(round_up(dims.base.value_dim, kMaxLanes)) {
    const auto take = [&base](int64_t count) {
      float* at = base;
      base += count;
      return at;
    };
    decays = take(4 * q);
    kt = take(k * q);
    for (float** square : {&kk, &qk, &decay, &a, &m, &g, &n}) *square = take(q * q);
    for (float** of_values : {&x, &scaled_v}) *of_values = take(q * v);
    for (float** of_keys : {&xs, &scaled_k}) *of_keys = take(q * k);
    et = take(v * q);
    st = take(v * k);
    for (float** vector : {&d_gamma, &d_beta, &factor}) *vector = take(q);
    state = take(dims.base.heads_per_key() * k * v);
  }

  static int64_t size(const GatedDeltaChunkDims& dims) {
    const int64_t q = round_up(dims.chunk, kMaxLanes);
    const int64_t k = round_up(dims.base.key_dim, kMaxLanes);
    const int64_t v = round_up(dims.base.value_dim, kMaxLanes);
    return 7 * q + 7 * q * q + 3 * q * (k + v) + (1 + dims.base.heads_per_key()) * k * v;
  }
};

/// Arguments of the backward pass, the same for all instruction sets.
struct DeltaVjp {
  GatedDeltaChunkDims dims;
  GatedDeltaOperands in;
  const float *starts, *e, *dy;
  int64_t dy_stride;
  GatedDeltaGrads grads;
};

}  // namespace braid::cpu
