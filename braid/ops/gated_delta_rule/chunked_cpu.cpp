// The chunked form: inside a chunk the corrections e solve a triangular system, and the rest is
// products of small matrices. README.md derives what is computed here.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/gated_delta_rule/scratch.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/gated_delta_rule/chunked_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/gated_delta_rule/delta-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// x <- e: the solution of (I - a) e = beta (v - exp(gamma) k S).
void delta_corrections(const GatedDeltaDims& dims, const GatedDeltaOperands& in,
                       const SsdChunk& cell, int64_t h, const DeltaMatrices& at,
                       const Decays& decays, const float* state) {
  const int64_t K = dims.key_dim, width = dims.value_dim, g = h / dims.heads_per_key();
  gemm({.m = cell.count,
        .n = width,
        .k = K,
        .a_row = dims.k_stride,
        .a_col = 1,
        .b_row = width,
        .c_row = at.v},
       in.k + cell.begin * dims.k_stride + g * K, state, nullptr, at.x);
  for (int64_t i = 0; i < cell.count; ++i) {
    const float* v = in.v + (cell.begin + i) * dims.v_stride + h * width;
    const V decay = hn::Set(D(), decays.from_start[i]);
    const V beta = hn::Set(D(), in.beta[(cell.begin + i) * dims.heads + h]);
    float* x = at.x + i * at.v;
    sv::for_each_vector(static_cast<size_t>(width), [&](auto access, size_t j) {
      access.store(hn::Mul(beta, hn::NegMulAdd(decay, access.load(x + j), access.load(v + j))),
                   x + j);
    });
  }
  solve_lower(cell.count, width, at.a, at.q, at.x, at.v);
}

// y = exp(gamma) q S + m e
void delta_outputs(const GatedDeltaDims& dims, const GatedDeltaOperands& in, const SsdChunk& cell,
                   int64_t h, const DeltaMatrices& at, const Decays& decays, const float* state,
                   float* y) {
  const int64_t K = dims.key_dim, width = dims.value_dim, row = dims.heads * width;
  float* to = y + cell.begin * row + h * width;
  gemm({.m = cell.count,
        .n = width,
        .k = K,
        .a_row = dims.q_stride,
        .a_col = 1,
        .b_row = width,
        .c_row = row},
       in.q + cell.begin * dims.q_stride + h / dims.heads_per_key() * K, state, nullptr, to);
  scale_in_place(cell.count, width, decays.from_start, to, row);
  lower_times(cell.count, width, at.m, at.q, at.x, at.v, to, row);
}

// S <- exp(gamma_end) S + (exp(gamma_end - gamma) k)^T e
void delta_advance(const GatedDeltaDims& dims, const GatedDeltaOperands& in, const SsdChunk& cell,
                   int64_t h, const DeltaMatrices& at, const Decays& decays, float* state) {
  const int64_t K = dims.key_dim, width = dims.value_dim;
  const V total = hn::Set(D(), decays.total);
  sv::for_each_vector(static_cast<size_t>(K * width), [&](auto access, size_t j) {
    access.store(hn::Mul(total, access.load(state + j)), state + j);
  });
  scale_rows(cell.count, K, decays.to_end,
             in.k + cell.begin * dims.k_stride + h / dims.heads_per_key() * K, dims.k_stride,
             at.scaled_k, at.k);
  gemm({.m = K,
        .n = width,
        .k = cell.count,
        .a_row = 1,
        .a_col = at.k,
        .b_row = at.v,
        .c_row = width,
        .start_row = width},
       at.scaled_k, at.x, state, state);
}

// The heads of key head g of sequence s, chunk by chunk.
void delta_chunks(const GatedDeltaChunkDims& dims, const GatedDeltaOperands& in, int64_t s,
                  int64_t g, const float* h0, float* ht, float* scratch,
                  const GatedDeltaOutputs& out) {
  const GatedDeltaDims& base = dims.base;
  const DeltaMatrices at(dims, scratch);
  Decays decays(at.decays, at.q);
  const int64_t per_key = base.heads_per_key(), size = base.key_dim * base.value_dim;
  const int64_t width = base.value_dim, row = base.heads * width;
  if (h0 == nullptr) {
    std::fill_n(at.state, per_key * size, 0.0f);
  } else {
    std::copy_n(h0 + g * per_key * size, per_key * size, at.state);
  }
  for (int64_t index = dims.firsts[s]; index < dims.firsts[s + 1]; ++index) {
    const SsdChunk& cell = dims.cells[index];
    delta_scores(base, in, cell, g, at);
    for (int64_t r = 0; r < per_key; ++r) {
      const int64_t h = g * per_key + r;
      float* state = at.state + r * size;
      if (out.starts != nullptr) {
        std::copy_n(state, size, out.starts + (index * base.heads + h) * size);
      }
      delta_systems(base, in, cell, h, at, decays);
      delta_corrections(base, in, cell, h, at, decays, state);
      for (int64_t t = 0; out.e != nullptr && t < cell.count; ++t) {
        std::copy_n(at.x + t * at.v, width, out.e + (cell.begin + t) * row + h * width);
      }
      if (out.y != nullptr) delta_outputs(base, in, cell, h, at, decays, state, out.y);
      delta_advance(base, in, cell, h, at, decays, state);
    }
  }
  if (ht != nullptr) std::copy_n(at.state, per_key * size, ht + g * per_key * size);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(delta_chunks);

int64_t gated_delta_chunk_scratch(const GatedDeltaChunkDims& dims) {
  return DeltaMatrices::size(dims);
}

void gated_delta_chunks(ThreadPool& threads, const GatedDeltaChunkDims& dims,
                        const GatedDeltaOperands& in, const float* const* h0, float* const* ht,
                        float* scratch, const GatedDeltaOutputs& out) {
  const int64_t keys = dims.base.key_heads, worker_scratch = gated_delta_chunk_scratch(dims);
  threads.parallel_for(dims.base.sequences * keys, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / keys;
      HWY_DYNAMIC_DISPATCH(delta_chunks)
      (dims, in, s, i % keys, h0[s], ht[s], scratch + worker * worker_scratch, out);
    }
  });
}

}  // namespace braid::cpu
#endif
