// What the scan and its vjp share: a block of tokens in scratch, and how a tile reads B, C and the
// decay. Compiled once per instruction set: include after hwy/foreach_target.h.

#if defined(BRAID_OPS_SELECTIVE_SCAN_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_SELECTIVE_SCAN_BLOCK_INL_H_
#undef BRAID_OPS_SELECTIVE_SCAN_BLOCK_INL_H_
#else
#define BRAID_OPS_SELECTIVE_SCAN_BLOCK_INL_H_
#endif

#include "braid/ops/attention/exp2-inl.h"
#include "braid/ops/selective_scan/scan.h"
#include "braid/ops/ssd/scan-inl.h"
#include "braid/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

// A block of tokens of one task.
struct SelectiveBlock {
  int64_t row, count;  // tokens [row, row + count)
  int64_t e0, width;   // channels [e0, e0 + width)
};

// B, C and rates as the tiles read them: of one token for all channels, or of one state for each.
struct SelectiveCoefficients {
  const float *b, *c, *rate;
  int64_t b_stride, c_stride, padded;

  SelectiveCoefficients(const SelectiveScanDims& dims, const SelectiveScanOperands& in,
                        const SelectiveBlock& k)
      : b(in.b + (dims.invariant ? k.e0 : k.row * dims.b_stride)),
        c(in.c + (dims.invariant ? k.e0 : k.row * dims.c_stride)),
        rate(in.rate + k.e0),
        b_stride(dims.b_stride),
        c_stride(dims.c_stride),
        padded(dims.padded()) {}

  HWY_INLINE V table(const float* from, int64_t n, int64_t i) const {
    return hn::LoadU(D(), from + n * padded + i);
  }
};

// The coefficients of kN states of one vector of channels. What does not vary in time is loaded
// once: there `decay` is the decay itself, otherwise the rate.
template <bool kInvariant, int kN>
struct SelectiveTile {
  V decay_or_rate[kN], b_fixed[kN], c_fixed[kN];
  const SelectiveCoefficients& from;
  int64_t n;

  HWY_INLINE SelectiveTile(const SelectiveCoefficients& k, int64_t n0, int64_t i, V dt)
      : from(k), n(n0) {
    HWY_UNROLL(8)
    for (int j = 0; j < kN; ++j) {
      decay_or_rate[j] = k.table(k.rate, n0 + j, i);
      if constexpr (kInvariant) {
        decay_or_rate[j] = exp2_nonpositive(D(), hn::Mul(dt, decay_or_rate[j]));
        b_fixed[j] = k.table(k.b, n0 + j, i);
        c_fixed[j] = k.table(k.c, n0 + j, i);
      }
    }
  }
  HWY_INLINE V decay(int j, V dt) const {
    if constexpr (kInvariant) return decay_or_rate[j];
    return exp2_nonpositive(D(), hn::Mul(dt, decay_or_rate[j]));
  }
  HWY_INLINE V b(int64_t t, int j) const {
    if constexpr (kInvariant) return b_fixed[j];
    return hn::Set(D(), from.b[t * from.b_stride + n + j]);
  }
  HWY_INLINE V c(int64_t t, int j) const {
    if constexpr (kInvariant) return c_fixed[j];
    return hn::Set(D(), from.c[t * from.c_stride + n + j]);
  }
};

// softplus' argument for the vector of channels at e; `n` channels are left.
HWY_INLINE V raw_step(const SelectiveScanDims& dims, const SelectiveScanOperands& in, int64_t row,
                      int64_t e, int64_t n) {
  const V bias = load(in.dt_bias + e, n);
  return dims.invariant ? bias : hn::Add(load(in.dt_raw + row * dims.dt_stride + e, n), bias);
}

// dt, u = dt x and y = D x of the block; x itself where it is wanted. Token by token, since rows
// that lie a multiple of a page apart displace each other.
HWY_INLINE void load_block(const SelectiveScanDims& dims, const SelectiveScanOperands& in,
                           const SelectiveBlock& k, float* dt, float* u, float* y, float* x) {
  const D d;
  for (int64_t t = 0; t < k.count; ++t) {
    for (int64_t i = 0; i < k.width; i += lanes()) {
      const int64_t e = k.e0 + i, n = k.width - i, at = t * kScanChannels + i;
      const V skip = in.d == nullptr ? hn::Zero(d) : load(in.d + e, n);
      simd::prefetch_row_ahead(in.x + (k.row + t) * dims.x_stride + e, dims.x_stride);
      if (!dims.invariant) {
        simd::prefetch_row_ahead(in.dt_raw + (k.row + t) * dims.dt_stride + e, dims.dt_stride);
      }
      const V step = sv::softplus(raw_step(dims, in, k.row + t, e, n));
      const V xi = load(in.x + (k.row + t) * dims.x_stride + e, n);
      hn::Store(step, d, dt + at);
      hn::Store(hn::Mul(step, xi), d, u + at);
      hn::Store(hn::Mul(skip, xi), d, y + at);
      if (x != nullptr) hn::Store(xi, d, x + at);
    }
  }
}

// States (N, E) of the task's channels to and from scratch (N, kScanChannels).
HWY_INLINE void load_states(const SelectiveScanDims& dims, const float* from, int64_t e0,
                            int64_t width, float* to) {
  const D d;
  for (int64_t n = 0; n < dims.state; ++n) {
    for (int64_t i = 0; i < width; i += lanes()) {
      hn::Store(from == nullptr ? hn::Zero(d) : load(from + n * dims.channels + e0 + i, width - i),
                d, to + n * kScanChannels + i);
    }
  }
}
HWY_INLINE void store_states(const SelectiveScanDims& dims, const float* from, int64_t e0,
                             int64_t width, float* to) {
  for (int64_t n = 0; n < dims.state; ++n) {
    for (int64_t i = 0; i < width; i += lanes()) {
      store(hn::Load(D(), from + n * kScanChannels + i), to + n * dims.channels + e0 + i,
            width - i);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per instruction set
