// The recurrent form. The columns of a state are independent: a task takes a few vectors of them
// through the whole sequence, in scratch that stays in the first-level cache.
//
// Bound: 4 operations per state element and token (S^T k, S *= decay, S += k e, S^T q), and for one
// token at a time the state's 8 bytes (read and write) per element.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/gated_delta_rule/kernels.h"
#include "braid/ops/ssd/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/gated_delta_rule/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/scan-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

constexpr int kDeltaVectors = 2;

int64_t delta_columns() { return kDeltaVectors * lanes(); }

// The columns' sums over rows of w[i] S[i], in two chains (even and odd rows) and their sum.
struct DeltaSums {
  V even[kDeltaVectors], odd[kDeltaVectors];

  HWY_INLINE DeltaSums() {
    for (int v = 0; v < kDeltaVectors; ++v) even[v] = odd[v] = hn::Zero(D());
  }
  HWY_INLINE V sum(int v) const { return hn::Add(even[v], odd[v]); }
};

// One token through `state` (K, columns); v and y have `left` >= 1 columns, maybe fewer.
HWY_INLINE void delta_token(int64_t key_dim, int64_t left, const float* q, const float* k,
                            const float* v, float decay, float beta, float* state, float* y) {
  const D d;
  const int64_t n = lanes(), columns = kDeltaVectors * n;
  const V dv = hn::Set(d, decay);
  DeltaSums predicted, read;
  int64_t i = 0;
  for (; i + 2 <= key_dim; i += 2) {
    const float* row = state + i * columns;
    const V k0 = hn::Set(d, k[i]), k1 = hn::Set(d, k[i + 1]);
    HWY_UNROLL(2)
    for (int c = 0; c < kDeltaVectors; ++c) {
      predicted.even[c] = hn::MulAdd(k0, hn::Load(d, row + c * n), predicted.even[c]);
      predicted.odd[c] = hn::MulAdd(k1, hn::Load(d, row + columns + c * n), predicted.odd[c]);
    }
  }
  if (i < key_dim) {
    const V k0 = hn::Set(d, k[i]);
    for (int c = 0; c < kDeltaVectors; ++c) {
      predicted.even[c] =
          hn::MulAdd(k0, hn::Load(d, state + i * columns + c * n), predicted.even[c]);
    }
  }
  V e[kDeltaVectors];
  for (int c = 0; c < kDeltaVectors; ++c) {
    const V value = left > c * n ? load(v + c * n, left - c * n) : hn::Zero(d);
    e[c] = hn::Mul(hn::Set(d, beta), hn::NegMulAdd(dv, predicted.sum(c), value));
  }
  const auto update = [&](int64_t row, V* chain) HWY_ATTR {
    const V kr = hn::Set(d, k[row]), qr = hn::Set(d, q[row]);
    float* at = state + row * columns;
    HWY_UNROLL(2)
    for (int c = 0; c < kDeltaVectors; ++c) {
      const V s = hn::MulAdd(kr, e[c], hn::Mul(dv, hn::Load(d, at + c * n)));
      hn::Store(s, d, at + c * n);
      chain[c] = hn::MulAdd(qr, s, chain[c]);
    }
  };
  for (i = 0; i + 2 <= key_dim; i += 2) {
    update(i, read.even);
    update(i + 1, read.odd);
  }
  if (i < key_dim) update(i, read.even);
  for (int c = 0; c < kDeltaVectors && left > c * n; ++c) {
    store(read.sum(c), y + c * n, left - c * n);
  }
}

// Columns [first, first + delta_columns()) of head h of sequence s.
void delta_scan(const GatedDeltaDims& dims, const GatedDeltaOperands& in, int64_t s, int64_t h,
                int64_t first, const float* h0, float* ht, float* state, float* y) {
  const D d;
  const int64_t K = dims.key_dim, width = dims.value_dim, columns = delta_columns();
  const int64_t left = std::min(columns, width - first), head = h * K * width + first;
  const int64_t key = h / dims.heads_per_key() * K, value = h * width + first;
  for (int64_t i = 0; i < K; ++i) {
    float* row = state + i * columns;
    if (h0 == nullptr) {
      std::fill_n(row, columns, 0.0f);
    } else {
      std::copy_n(h0 + head + i * width, left, row);
      std::fill_n(row + left, columns - left, 0.0f);
    }
  }
  for (int64_t t = dims.offsets[s]; t < dims.offsets[s + 1]; ++t) {
    const int64_t cell = t * dims.heads + h;
    const float decay = hn::GetLane(sv::exp(hn::Set(d, in.log_decay[cell])));
    delta_token(K, left, in.q + t * dims.q_stride + key, in.k + t * dims.k_stride + key,
                in.v + t * dims.v_stride + value, decay, in.beta[cell], state,
                y + t * dims.heads * width + value);
  }
  for (int64_t i = 0; i < K; ++i) std::copy_n(state + i * columns, left, ht + head + i * width);
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(delta_columns);
HWY_EXPORT(delta_scan);

int64_t gated_delta_scan_scratch(const GatedDeltaDims& dims) {
  return dims.key_dim * 2 * kMaxLanes;
}

void gated_delta_scan(ThreadPool& threads, const GatedDeltaDims& dims, const GatedDeltaOperands& in,
                      const float* const* h0, float* const* ht, float* scratch, float* y) {
  const int64_t columns = HWY_DYNAMIC_DISPATCH(delta_columns)();
  const int64_t blocks = (dims.value_dim + columns - 1) / columns;
  const int64_t length = dims.tokens / std::max<int64_t>(1, dims.sequences);
  const int64_t work = dims.key_dim * columns * std::max<int64_t>(1, length);
  threads.parallel_for(dims.sequences * dims.heads * blocks,
                       std::max<int64_t>(1, kGrainWork / work),
                       [&](int64_t begin, int64_t end, int worker) {
                         float* state = scratch + worker * gated_delta_scan_scratch(dims);
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t h = i / blocks % dims.heads, s = i / blocks / dims.heads;
                           HWY_DYNAMIC_DISPATCH(delta_scan)
                           (dims, in, s, h, i % blocks * columns, h0[s], ht[s], state, y);
                         }
                       });
}

}  // namespace braid::cpu
#endif
