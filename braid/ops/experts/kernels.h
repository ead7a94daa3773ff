#pragma once

#include <cstdint>

#include "braid/ops/experts/experts.h"
#include "braid/ops/linear/kernels.h"

namespace braid {

/// Rows [begin, end), sorted by expert, and the packed matrices of the expert that they meet; in
/// the vjp those of the transposes.
struct ExpertGroup {
  int64_t begin, end;
  const void *in, *out;
};

struct RouteDims {
  int64_t tokens, slots, experts;
  int64_t ids_row;  // elements between the rows of ids
};

/// What sorting finds: `rows` slots that have an expert, `groups` experts that have a row.
struct RouteCounts {
  int64_t rows, groups;
};

/// A layer applied to sorted rows. Row m is row order[m] / slots of x, or row m where there is no
/// order. Everything but x is dense.
struct ExpertDims {
  int64_t rows, groups;
  int64_t width, hidden;  // D, F
  DType dtype;
  ExpertActivation activation;
  int64_t slots, x_row;  // x_row: elements between rows

  constexpr int64_t in_rows() const {
    return activation == ExpertActivation::kSwiglu ? 2 * hidden : hidden;
  }
  constexpr PackedMatrix in() const { return {.n = in_rows(), .k = width, .dtype = dtype}; }
  constexpr PackedMatrix out() const { return {.n = width, .k = hidden, .dtype = dtype}; }
};

struct CombineDims {
  int64_t tokens, slots, width;
  int64_t weights_row;  // elements between the rows of weights
};

/// Of the part of the vjp that goes row by row.
struct ExpertVjpInputs {
  const int32_t* order;
  const float* weights;  // (N, k), rows weights_row apart
  int64_t weights_row;
  const float* dy;   // (N, D), rows x_row of the dims apart
  const float* pre;  // (rows, 2F or F)
};
struct ExpertVjpOutputs {
  float* dweights;  // (N, k), written where a slot has a row
  float* h;         // (rows, F): the hidden values times the slot's weight
  float* dpre;      // (rows, 2F or F)
  float* dx;        // (rows, D), or null
};

/// dw (n, k) <- a^T b over the rows of a group, in the product's dtype.
struct ExpertGradient {
  int64_t begin, end;
  float* dw;
};
/// a (rows, n) and b (rows, k), each dense and sorted, or taken by its order as x in ExpertDims.
struct GradientDims {
  int64_t groups, n, k;
  DType dtype;
  const int32_t *a_order, *b_order;  // or null
  int64_t slots, a_row, b_row;
};

namespace cpu {

/// Sorts the slots (token n, slot j -> n * slots + j) by expert, in order within one, by counting.
/// ids (tokens, slots) -> order (rows): the slot of a sorted row; place (tokens, slots): the sorted
/// row of a slot, or -1; hit (groups): the experts that have rows; offsets (groups + 1): where they
/// start. `counts` is scratch of `experts` values. Ids must be valid: -1 for none.
RouteCounts sort_by_expert(const RouteDims& dims, const int32_t* ids, int32_t* counts,
                           int32_t* order, int32_t* place, int32_t* hit, int32_t* offsets);

/// Bytes of scratch for `expert_rows`.
size_t expert_scratch_bytes(const ExpertDims& dims, const ExpertGroup* groups, int threads,
                            bool keeps_pre);
/// y (rows, D) <- out_g activation(in_g x[m]) for the rows of every group, the products with the
/// bits of `linear`. pre (rows, 2F or F) <- in_g x[m] where it is not null.
void expert_rows(ThreadPool& threads, const ExpertDims& dims, const ExpertGroup* groups,
                 const int32_t* order, const float* x, float* pre, float* y, void* scratch);

/// y[n] <- sum_j weights[n, j] rows[place[n, j]] as one chain of multiply-adds from zero over the
/// slots that have a row; weights null: all ones.
void combine_rows(ThreadPool& threads, const CombineDims& dims, const int32_t* place,
                  const float* weights, const float* rows, float* y);

size_t expert_vjp_scratch_bytes(const ExpertDims& dims, const ExpertGroup* groups, int threads);
/// With u = out^T dy[m] and h = activation(pre[m]): dweights <- <u, h>, dpre <- the gradient of
/// pre, dx <- in^T dpre. `groups` holds the packed transposes.
void expert_rows_vjp(ThreadPool& threads, const ExpertDims& dims, const ExpertGroup* groups,
                     const ExpertVjpInputs& in, const ExpertVjpOutputs& out, void* scratch);

/// dw of every group.
size_t expert_gradient_scratch_bytes(const GradientDims& dims, const ExpertGradient* groups,
                                     int threads);
void expert_gradients(ThreadPool& threads, const GradientDims& dims, const ExpertGradient* groups,
                      const float* a, const float* b, void* scratch);

// On the calling thread.

/// h (rows, F) <- activation of pre, both dense.
void activate_rows(const ExpertDims& dims, int64_t rows, const float* pre, float* h);
/// dpre <- activation'(pre) dh, all dense.
void activate_rows_vjp(const ExpertDims& dims, int64_t rows, const float* pre, const float* dh,
                       float* dpre);
/// Both times the weight; returns <u, h> from before. (F) each.
float weigh_row(int64_t hidden, float weight, float* u, float* h);
/// Row i of `to` (dense) <- row order[i] / slots of `from`.
void gather_rows(int64_t rows, int64_t width, int64_t slots, const int32_t* order, int64_t from_row,
                 const float* from, float* to);

}  // namespace cpu
}  // namespace braid
