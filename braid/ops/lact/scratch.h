#pragma once

#include <algorithm>
#include <cstdint>

#include "braid/ops/lact/kernels.h"
#include "braid/ops/ttt/scratch.h"

namespace braid::cpu {

inline constexpr int64_t kLactRows = 64;  // tokens that are multiplied at once
inline constexpr int kMuonSteps = 5;

/// One head's state, or a gradient of it, by name: the layout of lact_state_size.
class LactHeadState {
 public:
  LactHeadState(const LactDims& dims, float* base) : dims_(&dims), base_(base) {}
  float* base() const { return base_; }
  float* w(int i) const { return base_ + i * dims_->matrix(); }
  float* gradient(int i) const { return base_ + (3 + i) * dims_->matrix(); }
  float* momentum(int i) const { return base_ + (6 + i) * dims_->matrix(); }
  float* gate_sum() const { return base_ + 9 * dims_->matrix(); }

 private:
  const LactDims* dims_;
  float* base_;
};

/// Orthogonalisation of one matrix: X (r, c) with r <= c.
struct MuonScratch {
  float* x[kMuonSteps + 1];       // before each step and after the last
  float *transposed, *dx, *dy;    // (c, r), (r, c) each
  float *a, *b, *a2, *d_a, *d_b;  // (r, r)

  MuonScratch(const LactDims& dims, TttCarver& carver) {
    const int64_t n = dims.muon ? dims.matrix() : 0;
    const int64_t r = dims.muon ? std::min(dims.head_dim, dims.hidden) : 0;
    for (float*& at : x) at = carver.take(n);
    for (float** of : {&transposed, &dx, &dy}) *of = carver.take(n);
    for (float** of : {&a, &b, &a2, &d_a, &d_b}) *of = carver.take(r * r);
  }
};

/// Activations of a block of tokens.
struct LactScratch {
  float *g, *u, *s, *h, *dh, *e;  // (rows, F)
  float* scaled;                  // (rows, the wider of D and F)
  float* w1t;                     // (D, F)
  float *update, *norms;          // a matrix, (the wider)
  MuonScratch muon;

  LactScratch(const LactDims& dims, TttCarver& carver) : muon(dims, carver) {
    const int64_t widest = std::max(dims.head_dim, dims.hidden);
    for (float** of : {&g, &u, &s, &h, &dh, &e}) *of = carver.take(kLactRows * dims.hidden);
    scaled = carver.take(kLactRows * widest);
    w1t = carver.take(dims.matrix());
    update = carver.take(dims.matrix());
    norms = carver.take(2 * widest);
  }
};

/// What the backward pass of one head needs beside it.
struct LactVjpScratch {
  LactScratch block;
  float *kept, *state, *grad;            // (chunks, state), (state) each
  float *wt[3], *gt[3];                  // transposed weights and gradients of the sums
  float *slope, *curve;                  // (rows, F): of silu
  float *d_h, *d_u, *d_g, *d_e0, *d_e2;  // (rows, F)
  float* dx;                             // (rows, the wider of D and F)
  float* update[3];                      // updates before the weights' columns are scaled

  LactVjpScratch(const LactDims& dims, TttCarver& carver) : block(dims, carver) {
    int64_t chunks = 1;
    for (int64_t s = 0; s < dims.sequences; ++s) {
      const int64_t phase = dims.starts[s] % dims.chunk;
      const int64_t end = phase + dims.offsets[s + 1] - dims.offsets[s];
      chunks = std::max(chunks, (end + dims.chunk - 1) / dims.chunk);
    }
    kept = carver.take(chunks * dims.state());
    for (float** of : {&state, &grad}) *of = carver.take(dims.state());
    for (float*& of : wt) of = carver.take(dims.matrix());
    for (float*& of : gt) of = carver.take(dims.matrix());
    for (float** of : {&slope, &curve, &d_h, &d_u, &d_g, &d_e0, &d_e2}) {
      *of = carver.take(kLactRows * dims.hidden);
    }
    dx = carver.take(kLactRows * std::max(dims.head_dim, dims.hidden));
    for (float*& of : update) of = carver.take(dims.matrix());
  }
};

}  // namespace braid::cpu
