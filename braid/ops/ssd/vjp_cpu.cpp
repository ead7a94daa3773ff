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

// One token: dx, the three dot products of each head, and the slope of its step.
void token_terms(const TokenGrads& a, int64_t t) {
  const D d;
  const SsdDims& base = a.dims.base;
  const int64_t p = base.head_dim;
  for (int64_t h = 0; h < base.heads; ++h) {
    const int64_t cell = t * base.heads + h;
    const float* x = a.x + t * base.x_stride + h * p;
    const float* y = a.y + t * base.y_stride + h * p;
    const float* dy = a.dy + t * a.dims.dy_stride + h * p;
    const float* du = a.du + cell * p;
    float* dx = a.dx + cell * p;
    const V dt = hn::Set(d, a.dt[cell]), skip = hn::Set(d, a.d == nullptr ? 0.0f : a.d[h]);
    V dy_x = hn::Zero(d), dy_y = hn::Zero(d), du_x = hn::Zero(d);
    sv::for_each_vector(static_cast<size_t>(p), [&](auto access, size_t i) {
      const V xi = access.load(x + i), dyi = access.load(dy + i), dui = access.load(du + i);
      dy_x = hn::MulAdd(dyi, xi, dy_x);
      dy_y = hn::MulAdd(dyi, access.load(y + i), dy_y);
      du_x = hn::MulAdd(dui, xi, du_x);
      access.store(hn::MulAdd(dt, dui, hn::Mul(skip, dyi)), dx + i);
    });
    sum_lanes_of_four(dy_x, dy_y, du_x, hn::Zero(d), a.terms + 4 * cell);
  }
  const V low = hn::Set(d, a.dims.dt_min), high = hn::Set(d, a.dims.dt_max);
  sv::for_each_vector(static_cast<size_t>(base.heads), [&](auto access, size_t h) {
    const V raw =
        hn::Add(access.load(a.dt_raw + t * a.dims.dt_stride + h), access.load(a.dt_bias + h));
    const V dt = access.load(a.dt + t * base.heads + h);
    // Where the clamp holds, the step is a constant.
    const auto free = hn::And(hn::Gt(dt, low), hn::Lt(dt, high));
    access.store(hn::IfThenElseZero(free, sv::sigmoid(raw)), a.slopes + t * base.heads + h);
  });
}

// Head h of sequence s, last token first. sums (3): gradients of dt_bias, A_log, D.
void token_scan(const TokenGrads& a, int64_t s, int64_t h) {
  const SsdDims& base = a.dims.base;
  const double rate = -std::exp(static_cast<double>(a.a_log[h]));
  const double skip = a.d == nullptr ? 0.0 : a.d[h];
  double m = a.tail[s * base.heads + h], d_bias = 0, d_rate = 0, d_skip = 0;
  for (int64_t t = base.offsets[s + 1] - 1; t >= base.offsets[s]; --t) {
    const int64_t cell = t * base.heads + h;
    const float* terms = a.terms + 4 * cell;
    const double dy_x = terms[0], dy_y = terms[1], du_x = terms[2], dt = a.dt[cell];
    m += dy_y - skip * dy_x - dt * du_x;
    const double d_raw = a.slopes[cell] * (du_x + rate * m);
    a.d_dt_raw[cell] = static_cast<float>(d_raw);
    d_bias += d_raw;
    d_rate += dt * m;
    d_skip += dy_x;
  }
  float* sums = a.sums + (s * base.heads + h) * 3;
  sums[0] = static_cast<float>(d_bias);
  sums[1] = static_cast<float>(d_rate * rate);
  sums[2] = static_cast<float>(d_skip);
}

float state_dot(const float* a, const float* b, int64_t n) {
  return sv::sum_over_row(static_cast<size_t>(n), [&](auto access, size_t i, V sum) {
    return hn::MulAdd(access.load(a + i), access.load(b + i), sum);
  });
}
}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {

HWY_EXPORT(token_terms);
HWY_EXPORT(token_scan);
HWY_EXPORT(state_dot);

int64_t ssd_token_scratch(const SsdDims& dims) {
  return dims.heads * (5 * dims.tokens + 3 * dims.sequences);
}

void ssd_token_grads(ThreadPool& threads, const SsdGradDims& dims, const float* x, const float* y,
                     const float* dy, const float* du, const float* dt, const float* dt_raw,
                     const float* dt_bias, const float* a_log, const float* d, const float* tail,
                     float* scratch, float* dx, float* d_dt_raw, float* d_dt_bias, float* d_a_log,
                     float* d_d) {
  const int64_t heads = dims.base.heads, sequences = dims.base.sequences;
  const int64_t cells = dims.base.tokens * heads;
  float* terms = scratch;
  float* slopes = terms + 4 * cells;
  float* sums = slopes + cells;
  const TokenGrads grads{dims,  x, y,    dy, du,       dt,    dt_raw, dt_bias,
                         a_log, d, tail, dx, d_dt_raw, terms, slopes, sums};
  const int64_t grain = std::max<int64_t>(1, 8192 / (heads * dims.base.head_dim));
  threads.parallel_for(dims.base.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(token_terms)(grads, t);
  });
  threads.parallel_for(sequences * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(token_scan)(grads, i / heads, i % heads);
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
