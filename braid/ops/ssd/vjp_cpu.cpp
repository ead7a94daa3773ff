// The part of the vjp that goes token by token and head by head; see README.md.

#include <algorithm>
#include <cmath>

#include "braid/core/thread_pool.h"
#include "braid/ops/ssd/kernels.h"
#include "braid/ops/ssd/scan.h"
// clang-format off
#include "braid/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/ssd/vjp_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "braid/ops/ssd/scan-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {

HWY_INLINE float dot(const float* a, const float* b, int64_t n) {
  return sv::sum_over_row(static_cast<size_t>(n), [&](auto access, size_t i, V sum) {
    return hn::MulAdd(access.load(a + i), access.load(b + i), sum);
  });
}

// Head h of sequence s, last token first. sums (3): gradients of dt_bias, A_log, D.
void token_grads(const TokenGrads& a, int64_t s, int64_t h) {
  const SsdDims& base = a.dims.base;
  const int64_t p = base.head_dim;
  const double rate = -std::exp(static_cast<double>(a.a_log[h]));
  const float skip = a.d == nullptr ? 0.0f : a.d[h];
  double m = a.tail[s * base.heads + h], d_bias = 0, d_rate = 0, d_skip = 0;
  for (int64_t t = base.offsets[s + 1] - 1; t >= base.offsets[s]; --t) {
    const int64_t cell = t * base.heads + h;
    const float* x = a.x + t * base.x_stride + h * p;
    const float* y = a.y + t * base.y_stride + h * p;
    const float* dy = a.dy + t * a.dims.dy_stride + h * p;
    const float* du = a.du + cell * p;
    const double dt = a.dt[cell];
    const double dy_x = dot(dy, x, p), du_x = dot(du, x, p);
    m += dot(dy, y, p) - skip * dy_x - dt * du_x;
    d_skip += dy_x;
    d_rate += dt * m;
    const double raw = static_cast<double>(a.dt_raw[t * a.dims.dt_stride + h]) + a.dt_bias[h];
    // Where the clamp holds, the step is a constant.
    const bool free = a.dt[cell] > a.dims.dt_min && a.dt[cell] < a.dims.dt_max;
    const double d_raw = free ? (du_x + rate * m) / (1 + std::exp(-raw)) : 0.0;
    a.d_dt_raw[cell] = static_cast<float>(d_raw);
    d_bias += d_raw;
    float* dx = a.dx + cell * p;
    const V dt_v = hn::Set(D(), a.dt[cell]), skip_v = hn::Set(D(), skip);
    sv::for_each_vector(static_cast<size_t>(p), [&](auto access, size_t i) {
      const V direct = hn::Mul(skip_v, access.load(dy + i));
      access.store(hn::MulAdd(dt_v, access.load(du + i), direct), dx + i);
    });
  }
  float* sums = a.sums + (s * base.heads + h) * 3;
  sums[0] = static_cast<float>(d_bias);
  sums[1] = static_cast<float>(d_rate * rate);
  sums[2] = static_cast<float>(d_skip);
}

float state_dot(const float* a, const float* b, int64_t n) { return dot(a, b, n); }

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(token_grads);
HWY_EXPORT(state_dot);

void ssd_token_grads(ThreadPool& threads, const SsdGradDims& dims, const float* x, const float* y,
                     const float* dy, const float* du, const float* dt, const float* dt_raw,
                     const float* dt_bias, const float* a_log, const float* d, const float* tail,
                     float* sums, float* dx, float* d_dt_raw, float* d_dt_bias, float* d_a_log,
                     float* d_d) {
  const TokenGrads grads{dims,    x,     y, dy,   du, dt,       dt_raw,
                         dt_bias, a_log, d, tail, dx, d_dt_raw, sums};
  const int64_t heads = dims.base.heads, sequences = dims.base.sequences;
  threads.parallel_for(sequences * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(token_grads)(grads, i / heads, i % heads);
    }
  });
  for (int64_t h = 0; h < heads; ++h) {
    double sum[3] = {0, 0, 0};
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t j = 0; j < 3; ++j) sum[j] += sums[(s * heads + h) * 3 + j];
    }
    d_dt_bias[h] = static_cast<float>(sum[0]);
    d_a_log[h] = static_cast<float>(sum[1]);
    if (d_d != nullptr) d_d[h] = static_cast<float>(sum[2]);
  }
}

void ssd_state_dots(ThreadPool& threads, const SsdDims& dims, const float* const* a,
                    const float* const* b, float* tail) {
  const int64_t heads = dims.heads, size = dims.head_dim * dims.state;
  threads.parallel_for(dims.sequences * heads, std::max<int64_t>(1, kGrainWork / size),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) {
                           const float* as = a[i / heads];
                           const float* bs = b[i / heads];
                           const int64_t at = i % heads * size;
                           tail[i] = as == nullptr || bs == nullptr
                                         ? 0.0f
                                         : HWY_DYNAMIC_DISPATCH(state_dot)(as + at, bs + at, size);
                         }
                       });
}

void ssd_scale_states(ThreadPool& threads, const SsdDims& dims, const float* decay,
                      float* const* h) {
  const int64_t heads = dims.heads, size = dims.head_dim * dims.state;
  threads.parallel_for(dims.sequences * heads, std::max<int64_t>(1, kGrainWork / size),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) {
                           const int64_t first = dims.offsets[i / heads];
                           if (first == dims.offsets[i / heads + 1]) continue;
                           const float factor = decay[first * heads + i % heads];
                           float* state = h[i / heads] + i % heads * size;
                           for (int64_t j = 0; j < size; ++j) state[j] *= factor;
                         }
                       });
}

}  // namespace braid::cpu
#endif
