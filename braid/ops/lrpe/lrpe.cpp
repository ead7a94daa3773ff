#include "braid/ops/lrpe/lrpe.h"

#include <memory>
#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/lrpe/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::lrpe>;
using Backward = Kernel<&cpu::lrpe_vjp>;

std::vector<int64_t> positions_of(const SequenceBatch& batch) {
  std::vector<int64_t> positions;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    for (int64_t i = 0; i < batch.length(s); ++i) {
      positions.push_back(batch.starts[static_cast<size_t>(s)] + i);
    }
  }
  return positions;
}

}  // namespace

Tensor lrpe(Context& ctx, const Tensor& x, const Tensor& theta, const SequenceBatch& batch) {
  check(theta.rank() == 2 && theta.contiguous() && theta.dtype() == DType::kF32,
        "lrpe: theta is {} {}, want a dense f32 (H, d)", to_string(theta.dtype()),
        to_string(theta.shape()));
  const int64_t heads = theta.dim(0), dim = theta.dim(1);
  check(x.shape() == Shape{batch.tokens(), heads * dim} && x.dtype() == DType::kF32,
        "lrpe: x is {} {}, want f32 ({}, {})", to_string(x.dtype()), to_string(x.shape()),
        batch.tokens(), heads * dim);
  auto positions = std::make_shared<const std::vector<int64_t>>(positions_of(batch));
  const LrpeDims dims{.tokens = x.rows(),
                      .heads = heads,
                      .dim = dim,
                      .x_stride = x.row_stride(),
                      .dy_stride = 2 * heads * dim,
                      .positions = positions->data()};
  const auto scratch = [=](Context& c) { return c.empty({c.threads().size(), heads * dim}); };
  Tensor y = ctx.empty({x.rows(), 2 * heads * dim});
  Forward::run(ctx, "lrpe", dims, x.f32(), theta.f32(), scratch(ctx).f32(), y.f32());
  if (Tape* tape = ctx.tape()) {
    tape->record({x, theta}, y, [=](Context& inner, const Tensor& dy) -> Grads {
      LrpeDims back = dims;
      back.positions = positions->data();  // held by the closure
      back.dy_stride = dy.row_stride();
      const Tensor dx = inner.empty(x.shape()), d_theta = inner.empty(theta.shape());
      const Tensor partial =
          inner.empty({(dims.tokens + kLrpeBlock - 1) / kLrpeBlock, heads * dim});
      Backward::run(inner, "lrpe", back, x.f32(), theta.f32(), dy.f32(), scratch(inner).f32(),
                    partial.f32(), dx.f32(), d_theta.f32());
      return {dx, d_theta};
    });
  }
  return y;
}

}  // namespace braid
