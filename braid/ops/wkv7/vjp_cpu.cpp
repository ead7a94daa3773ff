// The vjp token by token: the states of a cell are computed again from the one at its beginning.
#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/wkv7/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/wkv7/vjp_cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using V = sv::F32;

HWY_INLINE V broadcast(float x) { return hn::Set(sv::F32Tag(), x); }

// w (P) <- e^log_decay.
void decay_row(int64_t P, const float* log_decay, float* w) {
  sv::for_each_vector(static_cast<size_t>(P),
                      [&](auto at, size_t j) { at.store(sv::exp(at.load(log_decay + j)), w + j); });
}

// The state (P, P) after the token at `row`, from the one before it.
void state_after(int64_t P, const Wkv7Operands& in, int64_t row, const float* reads, const float* w,
                 const float* before, float* after) {
  for (int64_t i = 0; i < P; ++i) {
    const V wi = broadcast(w[i]), bi = broadcast(in.b[row + i]), ki = broadcast(in.k[row + i]);
    sv::for_each_vector(static_cast<size_t>(P), [&](auto at, size_t j) {
      V s = hn::Mul(wi, at.load(before + i * P + j));
      s = hn::MulAdd(bi, at.load(reads + row + static_cast<int64_t>(j)), s);
      s = hn::MulAdd(ki, at.load(in.v + row + static_cast<int64_t>(j)), s);
      at.store(s, after + i * P + j);
    });
  }
}

// One token backwards: g (P, P) is the gradient of `after` from what follows and becomes that of
// `before`. d_reads (P) is scratch.
void token_vjp(int64_t P, const Wkv7Operands& in, int64_t row, const float* reads, const float* w,
               const float* before, const float* after, const float* dy, float* g, float* d_reads,
               const Wkv7Grads& grads) {
  const auto n = static_cast<size_t>(P);
  const float *dyr = dy + row, *vr = in.v + row, *ur = reads + row;
  std::fill_n(d_reads, P, 0.0f);
  std::fill_n(grads.dv + row, P, 0.0f);
  for (int64_t i = 0; i < P; ++i) {
    float* gi = g + i * P;
    const float *si = after + i * P, *pi = before + i * P;
    const V ri = broadcast(in.r[row + i]), ki = broadcast(in.k[row + i]);
    const V bi = broadcast(in.b[row + i]);
    sv::for_each_vector(n, [&](auto at, size_t j) {
      const V gij = hn::MulAdd(ri, at.load(dyr + j), at.load(gi + j));
      at.store(gij, gi + j);
      float* dv = grads.dv + row + j;
      at.store(hn::MulAdd(ki, gij, at.load(dv)), dv);
      at.store(hn::MulAdd(bi, gij, at.load(d_reads + j)), d_reads + j);
    });
    const auto dot = [&](const float* x, const float* y) {
      return sv::sum_over_row(n, [&](auto at, size_t j, V sum) {
        return hn::MulAdd(at.load(x + j), at.load(y + j), sum);
      });
    };
    grads.dr[row + i] = dot(si, dyr);
    grads.dk[row + i] = dot(gi, vr);
    grads.db[row + i] = dot(gi, ur);
    grads.d_log_decay[row + i] = w[i] * dot(gi, pi);
  }
  for (int64_t i = 0; i < P; ++i) {
    float* gi = g + i * P;
    const V wi = broadcast(w[i]), ai = broadcast(in.a[row + i]);
    grads.da[row + i] = sv::sum_over_row(n, [&](auto at, size_t j, V sum) {
      return hn::MulAdd(at.load(before + i * P + j), at.load(d_reads + j), sum);
    });
    sv::for_each_vector(n, [&](auto at, size_t j) {
      at.store(hn::MulAdd(ai, at.load(d_reads + j), hn::Mul(wi, at.load(gi + j))), gi + j);
    });
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(decay_row);
HWY_EXPORT(state_after);
HWY_EXPORT(token_vjp);

void wkv7_scan_vjp(ThreadPool& threads, const Wkv7Dims& dims, const Wkv7Operands& in,
                   const Wkv7Kept& kept, const float* dy, const float* const* d_final,
                   float* const* d_initial, float* scratch, const Wkv7Grads& grads) {
  constexpr int64_t kQ = kWkv7Chunk;
  const int64_t P = dims.head_dim, state = dims.state(), size = wkv7_scratch(dims);
  threads.parallel_for(dims.sequences * dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    float* states = scratch + worker * size;  // (Q + 1, P, P)
    float* g = states + (kQ + 1) * state;     // (P, P)
    float *w = g + state, *d_reads = w + P;   // (P)
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / dims.heads, h = i % dims.heads, first = dims.offsets[s];
      if (d_final[s] == nullptr) {
        std::fill_n(g, state, 0.0f);
      } else {
        std::copy_n(d_final[s] + h * state, state, g);
      }
      int64_t cell = dims.firsts[s + 1];
      for (int64_t t = dims.offsets[s + 1] - first; t > 0;) {
        const int64_t within = (dims.starts[s] + t) % kQ;
        const int64_t n = std::min(t, within == 0 ? kQ : within);
        t -= n;
        --cell;
        const auto row = [&](int64_t j) { return (first + t + j) * dims.width() + h * P; };
        std::copy_n(kept.states + (cell * dims.heads + h) * state, state, states);
        for (int64_t j = 0; j < n; ++j) {
          HWY_DYNAMIC_DISPATCH(decay_row)(P, in.log_decay + row(j), w);
          HWY_DYNAMIC_DISPATCH(state_after)
          (P, in, row(j), kept.reads, w, states + j * state, states + (j + 1) * state);
        }
        for (int64_t j = n - 1; j >= 0; --j) {
          HWY_DYNAMIC_DISPATCH(decay_row)(P, in.log_decay + row(j), w);
          HWY_DYNAMIC_DISPATCH(token_vjp)
          (P, in, row(j), kept.reads, w, states + j * state, states + (j + 1) * state, dy, g,
           d_reads, grads);
        }
      }
      if (d_initial[s] != nullptr) std::copy_n(g, state, d_initial[s] + h * state);
    }
  });
}

}  // namespace braid::cpu
#endif
