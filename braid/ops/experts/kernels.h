#pragma once

#include <cstdint>

#include "braid/ops/experts/experts.h"
#include "braid/ops/linear/kernels.h"

namespace braid {

/// Rows [begin, end), sorted by expert, and the packed matrix of the expert that they meet.
struct ExpertGroup {
  int64_t begin, end;
  const void* matrix;
};

struct RouteDims {
  int64_t tokens, slots, experts;
  int64_t ids_row;  // elements between the rows of ids
};

/// What sorting finds: `rows` slots that have an expert, `groups` experts that have a row.
struct RouteCounts {
  int64_t rows, groups;
};

struct GroupedDims {
  PackedMatrix b;  // of every group
  int64_t groups;
  int64_t a_row, c_row;  // elements between rows
};

/// dw (n, k) of a group <- a_g^T b_g over the group's rows: a (rows, n), b (rows, k).
struct GroupedGradientDims {
  int64_t groups;
  int64_t n, k;
  DType dtype;  // of the product
};

struct CombineDims {
  int64_t tokens, slots, width;
  int64_t weights_row;  // elements between the rows of weights
};

struct ExpertActivationDims {
  int64_t rows, hidden;  // F
  ExpertActivation activation;
  constexpr int64_t width() const {  // of what `in` gives
    return activation == ExpertActivation::kSwiglu ? 2 * hidden : hidden;
  }
};

namespace cpu {

/// Sorts the slots (token n, slot j -> n * slots + j) by expert, in order within one, by counting.
/// ids (tokens, slots) -> order (rows): the slot of a sorted row; place (tokens, slots): the sorted
/// row of a slot, or -1; hit (groups): the experts that have rows; offsets (groups + 1): where they
/// start. `counts` is scratch of `experts` values. Ids must be valid: -1 for none.
RouteCounts sort_by_expert(const RouteDims& dims, const int32_t* ids, int32_t* counts,
                           int32_t* order, int32_t* place, int32_t* hit, int32_t* offsets);

/// to (rows, width) <- rows order[m] / slots of `from`.
void gather_rows(ThreadPool& threads, int64_t rows, int64_t width, int64_t slots,
                 const int32_t* order, int64_t from_row, const float* from, float* to);

size_t grouped_scratch_bytes(const GroupedDims& dims, const ExpertGroup* groups);
/// c[m] <- a[m] b_g^T for the rows of every group; the bits of `linear`.
void grouped_linear(ThreadPool& threads, const GroupedDims& dims, const ExpertGroup* groups,
                    const float* a, float* c, void* scratch);

/// h (rows, F) <- activation of pre (rows, width), both dense.
void expert_activation(ThreadPool& threads, const ExpertActivationDims& dims, const float* pre,
                       float* h);
/// From u (rows, F), the gradient of h before it is weighted, and the weight of each row's slot:
/// dweights[order[m]] <- <u, h>, dpre <- activation'(pre) (weight u), and h <- weight h. `u` is
/// overwritten.
void expert_activation_vjp(ThreadPool& threads, const ExpertActivationDims& dims,
                           const CombineDims& combine, const int32_t* order, const float* weights,
                           const float* pre, float* u, float* h, float* dpre, float* dweights);

/// y[n] <- sum_j weights[n, j] rows[place[n, j]] as one chain of multiply-adds from zero over the
/// slots that have a row; weights null: all ones.
void combine_rows(ThreadPool& threads, const CombineDims& dims, const int32_t* place,
                  const float* weights, const float* rows, float* y);

}  // namespace cpu
}  // namespace braid
