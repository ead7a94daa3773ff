#pragma once

#include <cstdint>

namespace braid {

class ThreadPool;

/// Tokens that are multiplied at once, and floats of scratch per worker.
inline constexpr int64_t kFavorBlock = 32;

struct FavorDims {
  int64_t tokens, heads, dim, features;
  int64_t x_stride;     // elements between rows
  int64_t dphi_stride;  // of the gradient of the features; features are dense
  float eps;

  int64_t scratch() const { return kFavorBlock * 2 * dim; }
};

struct FavorMaximumDims {
  int64_t sequences, heads;
  const int64_t* offsets = nullptr;  // (S + 1) on the host
};

namespace cpu {

/// wt (K, M) <- w^T;  s (T, H M) <- w u - |u|^2 / 2;  top (T, H) <- max_j s_j.
void favor_scores(ThreadPool& threads, const FavorDims& dims, const float* x, const float* w,
                  float* wt, float* scratch, float* s, float* top);

/// c (T, H) <- the running maximum of top from start[s] (H) (null or 0: from nothing), which
/// end[s] (H) gets (may be the same memory); log_decay (T, H) <- c_{t-1} - c_t.
void favor_running_maximum(ThreadPool& threads, const FavorMaximumDims& dims, const float* top,
                           const float* const* start, float* const* end, float* c,
                           float* log_decay);

/// s <- (exp(s - c) + eps) / sqrt(M), in place.
void favor_exp(ThreadPool& threads, const FavorDims& dims, const float* c, float* s);

/// s <- exp(s - c) dphi / sqrt(M), in place: the gradient of s but for the way through c;
/// dc (T, H) <- minus its sum.
void favor_exp_vjp(ThreadPool& threads, const FavorDims& dims, const float* c, const float* dphi,
                   float* s, float* dc);

/// Turns dc into the gradient of top, in place, given those of log_decay (T, H; null: zero) and
/// of end[s] (null: zero). d_start[s] (H; null: not wanted).
void favor_running_maximum_vjp(ThreadPool& threads, const FavorMaximumDims& dims, const float* c,
                               const float* const* start, const float* d_log_decay,
                               const float* const* d_end, float* const* d_start, float* dc);

/// arg (T, H) <- where each top lies in its s.
void favor_arg_maximum(ThreadPool& threads, const FavorDims& dims, const float* s, const float* top,
                       int32_t* arg);
/// dx (T, H K), dense, from ds (T, H M) and d_top (T, H), which is added to ds at `arg`.
void favor_scores_vjp(ThreadPool& threads, const FavorDims& dims, const float* x, const float* w,
                      const float* d_top, const int32_t* arg, float* scratch, float* ds, float* dx);

}  // namespace cpu
}  // namespace braid
