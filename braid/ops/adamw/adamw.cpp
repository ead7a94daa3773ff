#include "braid/ops/adamw/adamw.h"

#include <algorithm>
#include <cmath>

#include "braid/core/kernel.h"
#include "braid/ops/adamw/kernels.h"

namespace braid {

using Update = Kernel<&cpu::adamw>;
using SumSquares = Kernel<&cpu::sum_squares>;

void adamw(Context& ctx, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v,
           const AdamWOptions& options) {
  for (const Tensor* x : {&g, &m, &v}) {
    check(x->shape() == p.shape(), "adamw: g, m or v has shape {}, want {}", to_string(x->shape()),
          to_string(p.shape()));
  }
  check(p.contiguous() && g.contiguous() && m.contiguous() && v.contiguous(),
        "adamw: a tensor has strided rows, want contiguous ones");
  check(options.step >= 1, "adamw: step is {}, want 1 or more", options.step);
  const auto step = static_cast<double>(options.step);
  const double bias1 = 1 - std::pow(static_cast<double>(options.beta1), step);
  const double bias2 = 1 - std::pow(static_cast<double>(options.beta2), step);
  const double lr = options.lr;
  const AdamWDims dims{.count = p.count(),
                       .gradient_scale = options.gradient_scale,
                       .beta1 = options.beta1,
                       .beta2 = options.beta2,
                       .eps = options.eps,
                       .keep = static_cast<float>(1 - lr * options.weight_decay),
                       .step_size = static_cast<float>(lr / bias1),
                       .inverse_bias2 = static_cast<float>(1 / std::sqrt(bias2))};
  Update::run(ctx, "adamw", dims, g.f32(), p.f32(), m.f32(), v.f32());
}

double global_norm(Context& ctx, std::span<const Tensor> tensors) {
  const Tensor total = ctx.zeros({1}, DType::kF64);
  for (const Tensor& x : tensors) {
    check(x.contiguous(), "global_norm: a tensor has strided rows, want contiguous ones");
    const SumSquaresDims dims{.count = x.count()};
    const Tensor partial = ctx.empty({dims.blocks()}, DType::kF64);
    SumSquares::run(ctx, "global_norm", dims, x.f32(), partial.data<double>(),
                    total.data<double>());
  }
  return std::sqrt(*ctx.to_host(total).data<double>());
}

double clip_factor(double norm, double max_norm) {
  if (max_norm <= 0 || norm <= max_norm) return 1;
  return max_norm / norm;
}

}  // namespace braid
