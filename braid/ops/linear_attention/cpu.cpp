// What linear attention adds to the scan of ops/ssd: its decays, their gradients, the division.

#include <algorithm>

#include "braid/core/thread_pool.h"
#include "braid/ops/linear_attention/kernels.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/linear_attention/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

void decay_row(const DecayDims& dims, int64_t t, const float* log_decay, float* log, float* decay) {
  const int64_t at = t * dims.heads;
  vec::for_each_vector(static_cast<size_t>(dims.heads), [&](auto access, size_t h) {
    const vec::F32 l = log_decay == nullptr ? hn::Zero(vec::F32Tag())
                                            : access.load(log_decay + t * dims.stride + h);
    access.store(l, log + at + h);
    access.store(vec::exp(l), decay + at + h);
  });
}

float dot(const float* a, const float* b, int64_t n) {
  return vec::sum_over_row(static_cast<size_t>(n), [&](auto access, size_t i, vec::F32 sum) {
    return hn::MulAdd(access.load(a + i), access.load(b + i), sum);
  });
}

// What token t adds to the gradient of its heads' decays.
void decay_terms(const DecayGradDims& dims, int64_t t, const float* v, const float* y,
                 const float* dy, const float* dv, float* terms) {
  for (int64_t h = 0; h < dims.heads; ++h) {
    const int64_t at = h * dims.value_dim, dense = t * dims.heads * dims.value_dim + at;
    terms[t * dims.heads + h] = dot(dy + t * dims.dy_stride + at, y + dense, dims.value_dim) -
                                dot(v + t * dims.v_stride + at, dv + dense, dims.value_dim);
  }
}

void divide_row(const DivideHeadsDims& dims, int64_t t, const float* y, const float* n,
                float* out) {
  for (int64_t h = 0; h < dims.heads; ++h) {
    const float* from = y + t * dims.y_stride + h * dims.value_dim;
    float* to = out + (t * dims.heads + h) * dims.value_dim;
    const vec::F32 by = hn::Set(vec::F32Tag(), n[t * dims.n_stride + h] + dims.eps);
    vec::for_each_vector(static_cast<size_t>(dims.value_dim), [&](auto access, size_t i) {
      access.store(hn::Div(access.load(from + i), by), to + i);
    });
  }
}

void divide_row_vjp(const DivideHeadsDims& dims, int64_t t, const float* y, const float* n,
                    const float* dout, float* dy, float* dn) {
  for (int64_t h = 0; h < dims.heads; ++h) {
    const float* g = dout + t * dims.dout_stride + h * dims.value_dim;
    float* to = dy + (t * dims.heads + h) * dims.value_dim;
    const float by = n[t * dims.n_stride + h] + dims.eps;
    const vec::F32 divisor = hn::Set(vec::F32Tag(), by);
    vec::for_each_vector(static_cast<size_t>(dims.value_dim), [&](auto access, size_t i) {
      access.store(hn::Div(access.load(g + i), divisor), to + i);
    });
    dn[t * dims.heads + h] =
        -dot(to, y + t * dims.y_stride + h * dims.value_dim, dims.value_dim) / by;
  }
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(decay_row);
HWY_EXPORT(decay_terms);
HWY_EXPORT(divide_row);
HWY_EXPORT(divide_row_vjp);

namespace {

// Rows of `width` elements that are worth a task.
int64_t grain(int64_t width) { return 1 + 16384 / std::max<int64_t>(1, width); }

}  // namespace

void decays(ThreadPool& threads, const DecayDims& dims, const float* log_decay, float* log,
            float* decay) {
  threads.parallel_for(dims.tokens, grain(dims.heads), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      HWY_DYNAMIC_DISPATCH(decay_row)(dims, t, log_decay, log, decay);
    }
  });
}

void decay_grads(ThreadPool& threads, const DecayGradDims& dims, const float* v, const float* y,
                 const float* dy, const float* dv, const float* tail, float* d_log,
                 float* d_constant) {
  threads.parallel_for(dims.tokens, grain(dims.heads * dims.value_dim),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t t = begin; t < end; ++t) {
                           HWY_DYNAMIC_DISPATCH(decay_terms)(dims, t, v, y, dy, dv, d_log);
                         }
                       });
  threads.parallel_for(dims.heads, grain(dims.tokens), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      double total = 0;
      for (int64_t s = 0; s < dims.sequences; ++s) {
        double m = tail[s * dims.heads + h];
        for (int64_t t = dims.offsets[s + 1] - 1; t >= dims.offsets[s]; --t) {
          m += d_log[t * dims.heads + h];
          d_log[t * dims.heads + h] = static_cast<float>(m);
          total += m;
        }
      }
      if (d_constant != nullptr) d_constant[h] = static_cast<float>(total);
    }
  });
}

void divide_heads(ThreadPool& threads, const DivideHeadsDims& dims, const float* y, const float* n,
                  float* out) {
  threads.parallel_for(dims.tokens, grain(dims.heads * dims.value_dim),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t t = begin; t < end; ++t) {
                           HWY_DYNAMIC_DISPATCH(divide_row)(dims, t, y, n, out);
                         }
                       });
}

void divide_heads_vjp(ThreadPool& threads, const DivideHeadsDims& dims, const float* y,
                      const float* n, const float* dout, float* dy, float* dn) {
  threads.parallel_for(dims.tokens, grain(dims.heads * dims.value_dim),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t t = begin; t < end; ++t) {
                           HWY_DYNAMIC_DISPATCH(divide_row_vjp)(dims, t, y, n, dout, dy, dn);
                         }
                       });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
