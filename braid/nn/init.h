#pragma once

#include "braid/nn/parameter.h"

namespace braid {

/// A (rows, columns) matrix with orthonormal rows (columns, if there are fewer of them) times
/// `gain`, distributed evenly over all such matrices: the Gram-Schmidt process over normal numbers,
/// in float64. Costs rows * columns * min(rows, columns) multiply-adds, twice.
/// Source: Saxe et al., arXiv:1312.6120.
Initializer init_orthogonal(int64_t rows, int64_t columns, double gain);

}  // namespace braid
