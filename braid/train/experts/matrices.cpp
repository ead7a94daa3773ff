#include "braid/train/experts/matrices.h"

#include <cmath>

#include "braid/ops/activation/activation.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/swiglu/swiglu.h"

namespace braid {
namespace {

Tensor activate(Context& ctx, const Tensor& x, ExpertActivation kind) {
  switch (kind) {
    case ExpertActivation::kSwiglu:
      return swiglu(ctx, x);
    case ExpertActivation::kRelu2:
      return activation(ctx, x, Activation::kReluSquared);
    case ExpertActivation::kRelu:
      return activation(ctx, x, Activation::kRelu);
    case ExpertActivation::kGelu:
      return gelu(ctx, x);
    case ExpertActivation::kSilu:
      return activation(ctx, x, Activation::kSilu);
  }
  fail(ErrorKind::kUsage, "experts: activation {}, want one of ExpertActivation",
       static_cast<int>(kind));
}

}  // namespace

ExpertOutputs evaluate_expert(Context& ctx, const Tensor& x, const Expert& expert,
                              ExpertActivation kind) {
  const Tensor hidden = activate(ctx, linear(ctx, x, expert.in), kind);
  return {ctx.to_host(hidden), ctx.to_host(linear(ctx, hidden, expert.out))};
}

Tensor product(Context& ctx, const Tensor& x, const Tensor& y) {
  return ctx.to_host(linear(ctx, ctx.to_device(x), Weight::make(ctx, y)));
}

Tensor transpose(const Tensor& x) {
  const int64_t M = x.dim(0), N = x.dim(1);
  std::vector<float> values(static_cast<size_t>(M * N));
  for (int64_t i = 0; i < M; ++i) {
    const float* row = x.f32() + i * x.row_stride();
    for (int64_t j = 0; j < N; ++j) values[static_cast<size_t>(j * M + i)] = row[j];
  }
  return host_tensor(std::move(values), {N, M});
}

double norm_of(const Tensor& x) {
  double sum = 0;
  for (int64_t i = 0; i < x.rows(); ++i) {
    const float* row = x.f32() + i * x.row_stride();
    for (int64_t j = 0; j < x.row_count(); ++j) sum += static_cast<double>(row[j]) * row[j];
  }
  return std::sqrt(sum);
}

}  // namespace braid
