// Scores are products of small matrices, a block of tokens of one head at a time; the rest is
// element by element, bound by the exponential, and one short pass along each sequence.

#include <algorithm>
#include <cmath>
#include <limits>

#include "braid/core/thread_pool.h"
#include "braid/ops/favor_features/kernels.h"
#include "braid/simd/gemm.h"
#include "braid/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "braid/ops/favor_features/cpu.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "braid/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace vec = simd::HWY_NAMESPACE;

HWY_INLINE vec::F32 constant(float value) { return hn::Set(vec::F32Tag(), value); }

// u <- scale x, and |u|^2.
float scaled_square(int64_t n, float scale, const float* x, float* u) {
  return vec::sum_over_row(static_cast<size_t>(n), [&](auto at, size_t i, vec::F32 sum) {
    const vec::F32 v = hn::Mul(constant(scale), at.load(x + i));
    at.store(v, u + i);
    return hn::MulAdd(v, v, sum);
  });
}

// s <- s - shift, and the largest of them.
float shift_and_maximum(int64_t n, float shift, float* s) {
  const vec::F32Tag d;
  const vec::F32 lowest = constant(-std::numeric_limits<float>::infinity());
  vec::F32 top = lowest;
  vec::for_each_vector(static_cast<size_t>(n), [&](auto at, size_t i) {
    const vec::F32 v = hn::Sub(at.load(s + i), constant(shift));
    at.store(v, s + i);
    top = hn::Max(top, at.keep(v, lowest));
  });
  return hn::GetLane(hn::MaxOfLanes(d, top));
}

void exp_row(int64_t n, float c, float eps, float scale, float* s) {
  vec::for_each_vector(static_cast<size_t>(n), [&](auto at, size_t i) {
    const vec::F32 e = vec::exp(hn::Sub(at.load(s + i), constant(c)));
    at.store(hn::Mul(constant(scale), hn::Add(e, constant(eps))), s + i);
  });
}

// The sum of the row of gradients that replaces s.
float exp_row_vjp(int64_t n, float c, float scale, const float* dphi, float* s) {
  return vec::sum_over_row(static_cast<size_t>(n), [&](auto at, size_t i, vec::F32 sum) {
    const vec::F32 e = vec::exp(hn::Sub(at.load(s + i), constant(c)));
    const vec::F32 g = hn::Mul(hn::Mul(e, constant(scale)), at.load(dphi + i));
    at.store(g, s + i);
    return hn::Add(at.keep(g, hn::Zero(vec::F32Tag())), sum);
  });
}

float row_sum(int64_t n, const float* x) {
  return vec::sum_over_row(static_cast<size_t>(n), [&](auto at, size_t i, vec::F32 sum) {
    return hn::Add(at.load(x + i), sum);
  });
}

// dx <- scale (du - total u), u = scale x.
void input_grad(int64_t n, float scale, float total, const float* du, const float* x, float* dx) {
  vec::for_each_vector(static_cast<size_t>(n), [&](auto at, size_t i) {
    const vec::F32 u = hn::Mul(constant(scale), at.load(x + i));
    at.store(hn::Mul(constant(scale), hn::NegMulAdd(constant(total), u, at.load(du + i))), dx + i);
  });
}

}  // namespace braid::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid::cpu {
HWY_EXPORT(scaled_square);
HWY_EXPORT(shift_and_maximum);
HWY_EXPORT(exp_row);
HWY_EXPORT(exp_row_vjp);
HWY_EXPORT(row_sum);
HWY_EXPORT(input_grad);

namespace {

float input_scale(const FavorDims& dims) {
  return static_cast<float>(std::pow(static_cast<double>(dims.dim), -0.25));
}
float feature_scale(const FavorDims& dims) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(dims.features)));
}

// body(first token, tokens, head, worker) over blocks of tokens of one head.
template <class Body>
void for_each_block(ThreadPool& threads, const FavorDims& dims, Body&& body) {
  const int64_t blocks = (dims.tokens + kFavorBlock - 1) / kFavorBlock;
  threads.parallel_for(blocks * dims.heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / dims.heads * kFavorBlock;
      body(first, std::min(kFavorBlock, dims.tokens - first), i % dims.heads, worker);
    }
  });
}

// body(cell) for every token and head.
template <class Body>
void for_each_cell(ThreadPool& threads, const FavorDims& dims, Body&& body) {
  threads.parallel_for(dims.tokens * dims.heads, 1 + 8192 / dims.features,
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) body(i);
                       });
}

// body(sequence, head), few tokens being too little to share.
template <class Body>
void for_each_sequence(ThreadPool& threads, const FavorMaximumDims& dims, Body&& body) {
  const int64_t length = dims.offsets[dims.sequences] / std::max<int64_t>(1, dims.sequences);
  threads.parallel_for(dims.sequences * dims.heads, 1 + 8192 / (length + 1),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) body(i / dims.heads, i % dims.heads);
                       });
}

}  // namespace

void favor_scores(ThreadPool& threads, const FavorDims& dims, const float* x, const float* w,
                  float* wt, float* scratch, float* s, float* top) {
  const int64_t K = dims.dim, M = dims.features, H = dims.heads;
  simd::transpose(M, K, w, K, wt, M);
  for_each_block(threads, dims, [&](int64_t first, int64_t count, int64_t h, int worker) {
    float* u = scratch + worker * dims.scratch();
    float squares[kFavorBlock];
    for (int64_t t = 0; t < count; ++t) {
      squares[t] = HWY_DYNAMIC_DISPATCH(scaled_square)(
          K, input_scale(dims), x + (first + t) * dims.x_stride + h * K, u + t * K);
    }
    float* to = s + (first * H + h) * M;
    simd::gemm({.m = count, .n = M, .k = K, .a_row = K, .a_col = 1, .b_row = M, .c_row = H * M}, u,
               wt, nullptr, to);
    for (int64_t t = 0; t < count; ++t) {
      top[(first + t) * H + h] =
          HWY_DYNAMIC_DISPATCH(shift_and_maximum)(M, squares[t] / 2, to + t * H * M);
    }
  });
}

void favor_running_maximum(ThreadPool& threads, const FavorMaximumDims& dims, const float* top,
                           const float* const* start, float* const* end, float* c,
                           float* log_decay) {
  for_each_sequence(threads, dims, [&](int64_t s, int64_t h) {
    float largest = start[s] == nullptr ? 0.0f : start[s][h];
    for (int64_t t = dims.offsets[s]; t < dims.offsets[s + 1]; ++t) {
      const int64_t at = t * dims.heads + h;
      const float before = largest;
      largest = before == 0.0f ? top[at] : std::max(before, top[at]);
      if (largest == 0.0f) largest = std::numeric_limits<float>::min();
      c[at] = largest;
      log_decay[at] = before == 0.0f ? 0.0f : before - largest;
    }
    if (end[s] != nullptr) end[s][h] = largest;
  });
}

void favor_exp(ThreadPool& threads, const FavorDims& dims, const float* c, float* s) {
  for_each_cell(threads, dims, [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(exp_row)
    (dims.features, c[i], dims.eps, feature_scale(dims), s + i * dims.features);
  });
}

void favor_exp_vjp(ThreadPool& threads, const FavorDims& dims, const float* c, const float* dphi,
                   float* s, float* dc) {
  for_each_cell(threads, dims, [&](int64_t i) {
    const float* g = dphi + i / dims.heads * dims.dphi_stride + i % dims.heads * dims.features;
    dc[i] = -HWY_DYNAMIC_DISPATCH(exp_row_vjp)(dims.features, c[i], feature_scale(dims), g,
                                               s + i * dims.features);
  });
}

void favor_running_maximum_vjp(ThreadPool& threads, const FavorMaximumDims& dims, const float* c,
                               const float* const* start, const float* d_log_decay,
                               const float* const* d_end, float* const* d_start, float* dc) {
  for_each_sequence(threads, dims, [&](int64_t s, int64_t h) {
    const float from = start[s] == nullptr ? 0.0f : start[s][h];
    double gradient = d_end[s] == nullptr ? 0.0 : d_end[s][h];  // of the maximum after token t
    for (int64_t t = dims.offsets[s + 1] - 1; t >= dims.offsets[s]; --t) {
      const int64_t at = t * dims.heads + h;
      const float before = t == dims.offsets[s] ? from : c[at - dims.heads];
      const bool first = before == 0.0f;
      const double d_log = d_log_decay == nullptr || first ? 0.0 : d_log_decay[at];
      gradient += dc[at] - d_log;
      if (first || c[at] != before) {  // this token set the maximum
        dc[at] = static_cast<float>(gradient);
        gradient = d_log;
      } else {
        dc[at] = 0;
        gradient += d_log;
      }
    }
    if (d_start[s] != nullptr) d_start[s][h] = static_cast<float>(gradient);
  });
}

void favor_arg_maximum(ThreadPool& threads, const FavorDims& dims, const float* s, const float* top,
                       int32_t* arg) {
  for_each_cell(threads, dims, [&](int64_t i) {
    const float* row = s + i * dims.features;
    arg[i] = static_cast<int32_t>(std::find(row, row + dims.features, top[i]) - row);
  });
}

void favor_scores_vjp(ThreadPool& threads, const FavorDims& dims, const float* x, const float* w,
                      const float* d_top, const int32_t* arg, float* scratch, float* ds,
                      float* dx) {
  const int64_t K = dims.dim, M = dims.features, H = dims.heads;
  for_each_block(threads, dims, [&](int64_t first, int64_t count, int64_t h, int worker) {
    float* du = scratch + worker * dims.scratch();
    float* of_block = ds + (first * H + h) * M;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t cell = (first + t) * H + h;
      if (arg[cell] < M) of_block[t * H * M + arg[cell]] += d_top[cell];  // else: NaN
    }
    simd::gemm({.m = count, .n = K, .k = M, .a_row = H * M, .a_col = 1, .b_row = K, .c_row = K},
               of_block, w, nullptr, du);
    for (int64_t t = 0; t < count; ++t) {
      const float total = HWY_DYNAMIC_DISPATCH(row_sum)(M, of_block + t * H * M);
      HWY_DYNAMIC_DISPATCH(input_grad)
      (K, input_scale(dims), total, du + t * K, x + (first + t) * dims.x_stride + h * K,
       dx + ((first + t) * H + h) * K);
    }
  });
}

}  // namespace braid::cpu
#endif  // HWY_ONCE
