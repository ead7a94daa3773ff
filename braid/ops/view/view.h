#pragma once

#include <span>
#include <vector>

#include "braid/core/context.h"

namespace braid {

/// Splits x (N, D) into column slices of the given widths, which must add up to D. The slices are
/// views of x: nothing is copied. vjp: the slices' gradients side by side.
std::vector<Tensor> split_columns(Context& ctx, const Tensor& x, std::span<const int64_t> widths);

/// The rows of all parts side by side: (N, sum of their widths), a new tensor. vjp: column slices.
Tensor concat_columns(Context& ctx, std::span<const Tensor> parts);

/// x with another shape, as a view (see Tensor::reshape). vjp: dy in the shape of x.
Tensor reshape(Context& ctx, const Tensor& x, Shape shape);

/// Rows x[rows[i]] as a new (R, D) tensor. vjp: rows added back where they came from.
Tensor gather_rows(Context& ctx, const Tensor& x, std::span<const int64_t> rows);

}  // namespace braid
