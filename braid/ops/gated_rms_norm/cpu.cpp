// One pass for the mean of squares and one for the output; a group stays in the first-level cache
// in between. Bound by the gate's exponential.

#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/gated_rms_norm/kernels.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/gated_rms_norm/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/simd/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = braid::simd::HWY_NAMESPACE;

using D = sv::F32Tag;
using V = sv::F32;

// Out-of-line copies for two orders of norm and gate share all but the names of the factors:
//   gate first: u = y silu(z), out = (u r) w;   norm first: u = y, out = (u r) (w silu(z)).
template <bool kNormFirst>
void forward_group(int64_t size, float eps, const float* y, const float* z, const float* w,
                   float* out) {
  const D d;
  const auto n = static_cast<size_t>(size);
  const float sum = sv::sum_over_row(n, [&](auto access, size_t i, V acc) {
    V u = access.load(y + i);
    if constexpr (!kNormFirst) {
      u = hn::Mul(u, sv::silu(access.load(z + i)));
      access.store(u, out + i);
    }
    return hn::MulAdd(u, u, acc);
  });
  const V r = hn::Set(d, 1.0f / std::sqrt(sum / static_cast<float>(size) + eps));
  sv::for_each_vector(n, [&](auto access, size_t i) {
    V scale = access.load(w + i);
    if constexpr (kNormFirst) scale = hn::Mul(scale, sv::silu(access.load(z + i)));
    const V u = access.load((kNormFirst ? y : out) + i);
    access.store(hn::Mul(hn::Mul(u, r), scale), out + i);
  });
}

void forward(const GatedRmsNormDims& dims, int64_t row, const float* y, const float* z,
             const float* w, float* out) {
  const int64_t size = dims.width / dims.groups;
  for (int64_t c = 0; c < dims.width; c += size) {
    const float* yc = y + row * dims.y_stride + c;
    const float* zc = z + row * dims.z_stride + c;
    const float* wc = dims.shared_weight ? w : w + c;
    float* to = out + row * dims.width + c;
    if (dims.norm_before_gate) {
      forward_group<true>(size, dims.eps, yc, zc, wc, to);
    } else {
      forward_group<false>(size, dims.eps, yc, zc, wc, to);
    }
  }
}

// With out = u r v, v = w (gate first) or w silu(z):
//   du = r (dout v - u r^2 mean(dout v u)),  d w += dout u r (times the gate where it is in v).
template <bool kNormFirst>
void backward_group(int64_t size, float eps, const float* y, const float* z, const float* w,
                    const float* dout, float* dy, float* dz, float* dw) {
  const D d;
  const auto n = static_cast<size_t>(size);
  const float sum = sv::sum_over_row(n, [&](auto access, size_t i, V acc) {
    V u = access.load(y + i);
    if constexpr (!kNormFirst) u = hn::Mul(u, sv::silu(access.load(z + i)));
    return hn::MulAdd(u, u, acc);
  });
  // <dout v, u> = <dout w, y silu(z)> in either order.
  const float inner = sv::sum_over_row(n, [&](auto access, size_t i, V acc) {
    const V g = hn::Mul(access.load(dout + i), access.load(w + i));
    return hn::MulAdd(g, hn::Mul(access.load(y + i), sv::silu(access.load(z + i))), acc);
  });
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
  const V rv = hn::Set(d, r);
  const V correction = hn::Set(d, -r * r * r * (inner / static_cast<float>(size)));
  sv::for_each_vector(n, [&](auto access, size_t i) {
    const V yi = access.load(y + i), zi = access.load(z + i), wi = access.load(w + i);
    const V g = access.load(dout + i);
    const V s = sv::sigmoid(zi);
    const V gate = hn::Mul(zi, s), slope = sv::silu_slope(zi, s);
    V weight_grad;
    if constexpr (kNormFirst) {
      const V du = hn::MulAdd(yi, correction, hn::Mul(rv, hn::Mul(g, hn::Mul(wi, gate))));
      access.store(du, dy + i);
      const V normed = hn::Mul(g, hn::Mul(yi, rv));
      access.store(hn::Mul(hn::Mul(normed, wi), slope), dz + i);
      weight_grad = hn::Mul(normed, gate);
    } else {
      const V u = hn::Mul(yi, gate);
      const V du = hn::MulAdd(u, correction, hn::Mul(rv, hn::Mul(g, wi)));
      access.store(hn::Mul(du, gate), dy + i);
      access.store(hn::Mul(hn::Mul(du, yi), slope), dz + i);
      weight_grad = hn::Mul(g, hn::Mul(u, rv));
    }
    access.store(hn::Add(access.load(dw + i), weight_grad), dw + i);
  });
}

// Rows [begin, end) into one row of partial sums for dw.
void backward(const GatedRmsNormDims& dims, int64_t dout_stride, int64_t begin, int64_t end,
              const float* y, const float* z, const float* w, const float* dout, float* dy,
              float* dz, float* dw) {
  const int64_t size = dims.width / dims.groups;
  std::fill_n(dw, dims.weight_size(), 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = 0; c < dims.width; c += size) {
      const auto group = dims.norm_before_gate ? &backward_group<true> : &backward_group<false>;
      const int64_t of_weight = dims.shared_weight ? 0 : c;
      group(size, dims.eps, y + row * dims.y_stride + c, z + row * dims.z_stride + c, w + of_weight,
            dout + row * dout_stride + c, dy + row * dims.width + c, dz + row * dims.width + c,
            dw + of_weight);
    }
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(forward);
HWY_EXPORT(backward);

void gated_rms_norm(ThreadPool& threads, const GatedRmsNormDims& dims, const float* y,
                    const float* z, const float* w, float* out) {
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, dims.width));
  threads.parallel_for(dims.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      HWY_DYNAMIC_DISPATCH(forward)(dims, row, y, z, w, out);
    }
  });
}

void gated_rms_norm_vjp(ThreadPool& threads, const GatedRmsNormDims& dims, int64_t dout_stride,
                        const float* y, const float* z, const float* w, const float* dout,
                        float* partial, float* dy, float* dz, float* dw) {
  const int64_t blocks = (dims.rows + kGatedRmsNormBlock - 1) / kGatedRmsNormBlock;
  threads.parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kGatedRmsNormBlock;
      HWY_DYNAMIC_DISPATCH(backward)
      (dims, dout_stride, first, std::min(first + kGatedRmsNormBlock, dims.rows), y, z, w, dout, dy,
       dz, partial + i * dims.weight_size());
    }
  });
  const int64_t size = dims.weight_size();
  std::fill_n(dw, size, 0.0f);
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t c = 0; c < size; ++c) dw[c] += partial[i * size + c];
  }
}

}  // namespace braid::cpu
#endif
