// The vjp, chunk by chunk from the end. With S the state before a chunk, G the gradient of the one
// after it, e the corrections, x their gradient once the system is solved: see README.md.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/gated_delta_rule/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/gated_delta_rule/vjp_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/gated_delta_rule/delta-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// One head of one chunk.
struct DeltaHead {
  int64_t count, K, V, key_row, value_row;  // tokens, sizes, dense rows of dq and of dv
  const float *q, *k, *v, *e, *dy, *start;
  int64_t q_stride, k_stride, v_stride, dy_stride;
  float *dq, *dk, *dv;

  DeltaHead(const DeltaVjp& a, int64_t index, int64_t h) {
    const GatedDeltaDims& dims = a.dims.base;
    const SsdChunk& cell = a.dims.cells[index];
    const int64_t g = h / dims.heads_per_key();
    count = cell.count;
    K = dims.key_dim;
    V = dims.value_dim;
    key_row = dims.key_heads * K;
    value_row = dims.heads * V;
    q_stride = dims.q_stride;
    k_stride = dims.k_stride;
    v_stride = dims.v_stride;
    dy_stride = a.dy_stride;
    q = a.in.q + cell.begin * q_stride + g * K;
    k = a.in.k + cell.begin * k_stride + g * K;
    v = a.in.v + cell.begin * v_stride + h * V;
    e = a.e + cell.begin * value_row + h * V;
    dy = a.dy + cell.begin * dy_stride + h * V;
    start = a.starts + (index * dims.heads + h) * K * V;
    dq = a.grads.dq + cell.begin * key_row + g * K;
    dk = a.grads.dk + cell.begin * key_row + g * K;
    dv = a.grads.dv + cell.begin * value_row + h * V;
  }
};

inline float delta_dot(int64_t n, const float* a, const float* b) {
  return sv::sum_over_row(static_cast<size_t>(n), [&](auto access, size_t i, sv::F32 sum) {
    return hn::MulAdd(access.load(a + i), access.load(b + i), sum);
  });
}

// y += x
inline void delta_add(int64_t n, const float* x, float* y) {
  sv::for_each_vector(static_cast<size_t>(n), [&](auto access, size_t i) {
    access.store(hn::Add(access.load(y + i), access.load(x + i)), y + i);
  });
}

// x <- the gradient of e through the outputs and the state after, then through the system.
void delta_solve(const DeltaHead& a, const DeltaMatrices& at, const Decays& decays,
                 const float* d_state) {
  gemm({.m = a.count,
        .n = a.V,
        .k = a.K,
        .a_row = a.k_stride,
        .a_col = 1,
        .b_row = a.V,
        .c_row = at.v},
       a.k, d_state, nullptr, at.x);
  scale_in_place(a.count, a.V, decays.to_end, at.x, at.v);
  lower_transposed_times(a.count, a.V, at.m, at.q, a.dy, a.dy_stride, at.x, at.v);
  solve_lower_transposed(a.count, a.V, at.a, at.q, at.x, at.v);
}

// n <- decay (dy e^T), g <- -beta decay (x e^T) below the diagonal; their shares of d_gamma,
// d_beta.
void delta_pairs(const DeltaHead& a, const DeltaMatrices& at, const float* beta,
                 int64_t beta_stride) {
  const D d;
  simd::transpose(a.count, a.V, a.e, a.value_row, at.et, at.q);
  simd::GemmDims product{.m = a.count,
                         .n = a.count,
                         .k = a.V,
                         .a_row = at.v,
                         .a_col = 1,
                         .b_row = at.q,
                         .c_row = at.q};
  gemm(product, at.x, at.et, nullptr, at.g);
  product.a_row = a.dy_stride;
  gemm(product, a.dy, at.et, nullptr, at.n);
  std::fill_n(at.d_gamma, a.count, 0.0f);
  for (int64_t i = 0; i < a.count; ++i) {
    const int64_t row = i * at.q;
    at.g[row + i] = 0;  // the system is strictly lower
    const V minus_beta = hn::Set(d, -beta[i * beta_stride]);
    V of_beta = hn::Zero(d), of_gamma = hn::Zero(d);
    sv::for_each_vector(static_cast<size_t>(a.count), [&](auto access, size_t j) {
      const V decay = access.load(at.decay + row + j);  // zero above the diagonal
      const V keys = hn::Mul(decay, access.load(at.g + row + j));
      const V queries = hn::Mul(decay, access.load(at.n + row + j));
      const V scaled = hn::Mul(minus_beta, keys);
      const V of_keys = access.load(at.kk + row + j);
      const V pair = hn::MulAdd(queries, access.load(at.qk + row + j), hn::Mul(scaled, of_keys));
      access.store(scaled, at.g + row + j);
      access.store(queries, at.n + row + j);
      access.store(hn::Sub(access.load(at.d_gamma + j), pair), at.d_gamma + j);
      of_beta = hn::NegMulAdd(keys, of_keys, of_beta);
      of_gamma = hn::Add(of_gamma, pair);
    });
    at.d_beta[i] = hn::GetLane(hn::SumOfLanes(d, of_beta));
    at.d_gamma[i] += hn::GetLane(hn::SumOfLanes(d, of_gamma));
  }
}

// dv, and what x gives to dk and to d_beta, d_gamma by way of beta (v - exp(gamma) S^T k).
// at.factor <- -beta exp(gamma).
void delta_values(const DeltaHead& a, const DeltaMatrices& at, const Decays& decays,
                  const float* beta, int64_t beta_stride) {
  simd::transpose(a.K, a.V, a.start, a.V, at.st, at.k);
  const simd::GemmDims through_state{
      .m = a.count, .n = a.K, .k = a.V, .a_row = at.v, .a_col = 1, .b_row = at.k, .c_row = at.k};
  gemm(through_state, at.x, at.st, nullptr, at.xs);
  for (int64_t i = 0; i < a.count; ++i) {
    const float b = beta[i * beta_stride], decay = decays.from_start[i];
    const float read = delta_dot(a.K, a.k + i * a.k_stride, at.xs + i * at.k);
    at.factor[i] = -b * decay;
    at.d_beta[i] += delta_dot(a.V, a.v + i * a.v_stride, at.x + i * at.v) - decay * read;
    at.d_gamma[i] += at.factor[i] * read;
    const V scale = hn::Set(D(), b);
    sv::for_each_vector(static_cast<size_t>(a.V), [&](auto access, size_t j) {
      access.store(hn::Mul(scale, access.load(at.x + i * at.v + j)), a.dv + i * a.value_row + j);
    });
  }
  scale_in_place(a.count, a.K, at.factor, at.xs, at.k);
  for (int64_t i = 0; i < a.count; ++i) delta_add(a.K, at.xs + i * at.k, a.dk + i * a.key_row);
}

// dq += exp(gamma) S dy + n k, with the former's share of d_gamma; at.st is still S^T.
void delta_queries(const DeltaHead& a, const DeltaMatrices& at, const Decays& decays) {
  gemm({.m = a.count,
        .n = a.K,
        .k = a.V,
        .a_row = a.dy_stride,
        .a_col = 1,
        .b_row = at.k,
        .c_row = at.k},
       a.dy, at.st, nullptr, at.xs);
  scale_in_place(a.count, a.K, decays.from_start, at.xs, at.k);
  for (int64_t i = 0; i < a.count; ++i) {
    at.d_gamma[i] += delta_dot(a.K, a.q + i * a.q_stride, at.xs + i * at.k);
    delta_add(a.K, at.xs + i * at.k, a.dq + i * a.key_row);
  }
  lower_times(a.count, a.K, at.n, at.q, a.k, a.k_stride, a.dq, a.key_row);
}

// dk += exp(gamma_end - gamma) G e + n^T q + (g + g^T) k, with the first one's share of d_gamma.
void delta_keys(const DeltaHead& a, const DeltaMatrices& at, const Decays& decays,
                const float* d_state) {
  simd::transpose(a.K, a.V, d_state, a.V, at.st, at.k);
  gemm({.m = a.count,
        .n = a.K,
        .k = a.V,
        .a_row = a.value_row,
        .a_col = 1,
        .b_row = at.k,
        .c_row = at.k},
       a.e, at.st, nullptr, at.xs);
  scale_in_place(a.count, a.K, decays.to_end, at.xs, at.k);
  for (int64_t i = 0; i < a.count; ++i) {
    const float share = delta_dot(a.K, a.k + i * a.k_stride, at.xs + i * at.k);
    at.d_gamma[i] -= share;
    at.d_gamma[a.count - 1] += share;
    delta_add(a.K, at.xs + i * at.k, a.dk + i * a.key_row);
  }
  lower_transposed_times(a.count, a.K, at.n, at.q, a.q, a.q_stride, a.dk, a.key_row);
  lower_transposed_times(a.count, a.K, at.g, at.q, a.k, a.k_stride, a.dk, a.key_row);
  lower_times(a.count, a.K, at.g, at.q, a.k, a.k_stride, a.dk, a.key_row);
}

// G <- exp(gamma_end) G + (exp(gamma) q)^T dy - (beta exp(gamma) k)^T x, the gradient of S.
void delta_state(const DeltaHead& a, const DeltaMatrices& at, const Decays& decays,
                 float* d_state) {
  at.d_gamma[a.count - 1] += decays.total * delta_dot(a.K * a.V, a.start, d_state);
  const V total = hn::Set(D(), decays.total);
  sv::for_each_vector(static_cast<size_t>(a.K * a.V), [&](auto access, size_t j) {
    access.store(hn::Mul(total, access.load(d_state + j)), d_state + j);
  });
  simd::GemmDims product{.m = a.K,
                         .n = a.V,
                         .k = a.count,
                         .a_row = 1,
                         .a_col = at.k,
                         .b_row = a.dy_stride,
                         .c_row = a.V,
                         .start_row = a.V};
  scale_rows(a.count, a.K, decays.from_start, a.q, a.q_stride, at.scaled_k, at.k);
  gemm(product, at.scaled_k, a.dy, d_state, d_state);
  product.b_row = at.v;
  scale_rows(a.count, a.K, at.factor, a.k, a.k_stride, at.scaled_k, at.k);
  gemm(product, at.scaled_k, at.x, d_state, d_state);
}

// The heads of key head g of sequence s, from the last chunk to the first.
void delta_chunks_vjp(const DeltaVjp& a, int64_t s, int64_t g, const float* d_final,
                      float* d_initial, float* scratch) {
  const GatedDeltaDims& dims = a.dims.base;
  const DeltaMatrices at(a.dims, scratch);
  Decays decays(at.decays, at.q);
  const int64_t per_key = dims.heads_per_key(), size = dims.key_dim * dims.value_dim;
  if (d_final == nullptr) {
    std::fill_n(at.state, per_key * size, 0.0f);
  } else {
    std::copy_n(d_final + g * per_key * size, per_key * size, at.state);
  }
  for (int64_t index = a.dims.firsts[s + 1] - 1; index >= a.dims.firsts[s]; --index) {
    const SsdChunk& cell = a.dims.cells[index];
    delta_scores(dims, a.in, cell, g, at);
    for (int64_t h = g * per_key; h < (g + 1) * per_key; ++h) {
      const DeltaHead head(a, index, h);
      float* d_state = at.state + (h - g * per_key) * size;
      const float* beta = a.in.beta + cell.begin * dims.heads + h;
      for (int64_t t = 0; h == g * per_key && t < cell.count; ++t) {
        std::fill_n(head.dq + t * head.key_row, head.K, 0.0f);
        std::fill_n(head.dk + t * head.key_row, head.K, 0.0f);
      }
      delta_systems(dims, a.in, cell, h, at, decays);
      delta_solve(head, at, decays, d_state);
      delta_pairs(head, at, beta, dims.heads);
      delta_values(head, at, decays, beta, dims.heads);
      delta_queries(head, at, decays);
      delta_keys(head, at, decays, d_state);
      delta_state(head, at, decays, d_state);
      double sum = 0;  // gamma_i is the sum of the decays up to i
      for (int64_t t = cell.count - 1; t >= 0; --t) {
        const int64_t to = (cell.begin + t) * dims.heads + h;
        sum += at.d_gamma[t];
        a.grads.d_log_decay[to] = static_cast<float>(sum);
        a.grads.d_beta[to] = at.d_beta[t];
      }
    }
  }
  if (d_initial != nullptr) std::copy_n(at.state, per_key * size, d_initial + g * per_key * size);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(delta_chunks_vjp);

void gated_delta_chunks_vjp(ThreadPool& threads, const GatedDeltaChunkDims& dims,
                            const GatedDeltaOperands& in, const float* starts, const float* e,
                            const float* dy, int64_t dy_stride, const float* const* d_final,
                            float* const* d_initial, float* scratch, const GatedDeltaGrads& grads) {
  const DeltaVjp a{dims, in, starts, e, dy, dy_stride, grads};
  const int64_t keys = dims.base.key_heads, worker_scratch = gated_delta_chunk_scratch(dims);
  threads.parallel_for(dims.base.sequences * keys, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / keys;
      HWY_DYNAMIC_DISPATCH(delta_chunks_vjp)
      (a, s, i % keys, d_final[s], d_initial[s], scratch + worker * worker_scratch);
    }
  });
}

}  // namespace braid::cpu
#endif
