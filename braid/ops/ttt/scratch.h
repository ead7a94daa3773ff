#pragma once

#include <algorithm>
#include <cstdint>

#include "braid/ops/ttt/kernels.h"

namespace braid::cpu {

/// One head's state, or a gradient of it, by name: the layout of ttt_state_size.
class TttHeadState {
 public:
  TttHeadState(const TttDims& dims, float* base) : dims_(&dims), base_(base) {}

  float* base() const { return base_; }
  float* w(int layer) const {
    return base_ + (layer == 0 ? 0 : (dims_->head_dim + 1) * dims_->hidden);
  }
  float* b(int layer) const { return w(layer) + dims_->in(layer)*dims_->out(layer); }
  float* keys() const { return base_ + dims_->weights(); }
  /// (K, in) and (K, out): the factors of the gradients of step r.
  float* inputs(int layer, int64_t r) const {
    return layer == 0 ? keys() : step(r) + dims_->mini_batch * dims_->hidden;
  }
  float* p(int layer, int64_t r) const {
    return step(r) + (layer == 0 ? 0 : 2 * dims_->mini_batch * dims_->hidden);
  }

 private:
  float* step(int64_t r) const {
    return keys() + dims_->mini_batch * dims_->head_dim + r * dims_->step_rows();
  }

  const TttDims* dims_;
  float* base_;
};

/// Tokens [begin, begin + count) of the packed rows, in one mini-batch from its token `phase` on.
struct TttCell {
  int64_t begin, count, phase;
  int64_t end() const { return phase + count; }
};

/// The cells of one sequence: mini-batches from its start, the first and the last maybe cut.
class TttCells {
 public:
  TttCells(const TttDims& dims, int64_t s)
      : mini_batch_(dims.mini_batch),
        first_(dims.offsets[s]),
        length_(dims.offsets[s + 1] - dims.offsets[s]),
        phase_(dims.starts[s] % dims.mini_batch) {}

  int64_t count() const {
    return length_ == 0 ? 0 : (phase_ + length_ + mini_batch_ - 1) / mini_batch_;
  }
  TttCell operator[](int64_t c) const {
    const int64_t from = std::max<int64_t>(0, c * mini_batch_ - phase_);
    const int64_t to = std::min(length_, (c + 1) * mini_batch_ - phase_);
    return {.begin = first_ + from, .count = to - from, .phase = c == 0 ? phase_ : 0};
  }
  /// The mini-batch's tokens read after the last one.
  int64_t phase_end() const { return (phase_ + length_) % mini_batch_; }
  int64_t phase() const { return phase_; }

 private:
  int64_t mini_batch_, first_, length_, phase_;
};

/// Carves one worker's scratch.
class TttCarver {
 public:
  explicit TttCarver(float* base) : at_(base) {}
  float* take(int64_t count) {
    float* from = at_ == nullptr ? nullptr : at_ + size_;  // null only asks for the size
    size_ += (count + 15) / 16 * 16;
    return from;
  }
  int64_t size() const { return size_; }

 private:
  float* at_;
  int64_t size_ = 0;
};

/// What one cell needs beside the state. Rows are as wide as the names say.
struct TttScratch {
  float *transposed, *coef, *scaled;  // (widest, K), (K, K), (K, widest)
  float* wt[2];                       // (out, in): transposed weights
  float *z1, *slope, *y;              // (K, width)
  float* x2;                          // (K, width), of the queries
  float* z2;                          // (K, D)

  TttScratch(const TttDims& dims, TttCarver& carver) {
    const int64_t K = dims.mini_batch, widest = std::max(dims.head_dim, dims.width());
    transposed = carver.take(widest * K);
    coef = carver.take(K * K);
    scaled = carver.take(K * widest);
    for (int l = 0; l < 2; ++l) wt[l] = carver.take(dims.head_dim * dims.width());
    for (float** rows : {&z1, &slope, &y, &x2}) *rows = carver.take(K * dims.width());
    z2 = carver.take(K * dims.head_dim);
  }
};

/// Activations of the inner steps of one cell, for the backward pass: step r's rows of z1 and
/// y = g W2^T (K, width), z2 (K, D) from row r K on.
struct TttSaved {
  float *z1, *y, *z2;
};

inline constexpr int64_t kKeptWeights = 1 << 20;  // floats of a sequence's fast weights

/// Mini-batches between two of the fast weights that the backward pass keeps for a whole sequence:
/// one where those are few, else up to about as many as it then makes again in between.
inline int64_t ttt_interval(const TttDims& dims, int64_t cells) {
  int64_t interval = 1;
  while (interval * interval < cells && cells / interval * dims.weights() > kKeptWeights) {
    ++interval;
  }
  return interval;
}

/// What the backward pass of one head needs.
struct TttVjpScratch {
  TttScratch cell;
  TttSaved saved;
  float *state, *grad;            // (state)
  float *kept, *between;          // fast weights: (kept, weights), (interval, weights)
  float* d_coef;                  // (K, K)
  float *dz1, *dy;                // (K, width)
  float *dz2, *dg;                // (K, D)
  float* rows;                    // (K, widest)
  float* d_wt;                    // (out, in)
  float *row, *d_target, *x, *g;  // (D)
  float* d_rate;                  // (K), of the head

  TttVjpScratch(const TttDims& dims, TttCarver& carver) : cell(dims, carver) {
    const int64_t K = dims.mini_batch, n = dims.head_dim, width = dims.width();
    int64_t cells_kept = 0, longest_interval = 0;
    for (int64_t s = 0; s < dims.sequences; ++s) {
      const int64_t cells = TttCells(dims, s).count(), interval = ttt_interval(dims, cells);
      cells_kept = std::max(cells_kept, (cells + interval - 1) / interval);
      longest_interval = std::max(longest_interval, interval);
    }
    saved.z1 = carver.take(dims.steps * K * width);
    saved.y = carver.take(dims.steps * K * width);
    saved.z2 = carver.take(dims.steps * K * n);
    for (float** block : {&state, &grad}) *block = carver.take(dims.state());
    kept = carver.take(cells_kept * dims.weights());
    between = carver.take(longest_interval * dims.weights());
    d_coef = carver.take(K * K);
    for (float** of_width : {&dz1, &dy}) *of_width = carver.take(K * width);
    for (float** of_head : {&dz2, &dg}) *of_head = carver.take(K * n);
    rows = carver.take(K * std::max(n, width));
    d_wt = carver.take(n * width);
    for (float** one : {&row, &d_target, &x, &g}) *one = carver.take(n);
    d_rate = carver.take(K);
  }
};

/// One head's columns or rows of the gradients.
struct TttHeadGrads {
  float *dq, *dk, *dv;                 // of token 0; rows are H D apart
  float* d_lr;                         // of token 0; H apart
  float *d_norm_weight, *d_norm_bias;  // (D)
};

}  // namespace braid::cpu
