#include "braid/ops/cross_entropy/cross_entropy.h"

#include <vector>

#include "braid/core/kernel.h"
#include "braid/ops/cross_entropy/kernels.h"

namespace braid {

using Forward = Kernel<&cpu::cross_entropy>;
using Backward = Kernel<&cpu::cross_entropy_vjp>;

CrossEntropyResult softmax_cross_entropy(Context& ctx, const Tensor& logits,
                                         std::span<const int32_t> targets) {
  check(logits.rank() == 2 && logits.dim(1) > 0,
        "softmax_cross_entropy: logits have shape {}, want (N, V)", to_string(logits.shape()));
  check(static_cast<int64_t>(targets.size()) == logits.rows(),
        "softmax_cross_entropy: {} targets, want {}", targets.size(), logits.rows());
  CrossEntropyDims dims{
      .rows = logits.rows(), .classes = logits.dim(1), .stride = logits.row_stride(), .counted = 0};
  for (const int32_t target : targets) {
    check(target < dims.classes, "softmax_cross_entropy: target {}, want below {}", target,
          dims.classes);
    dims.counted += target >= 0;
  }
  const Tensor ids =
      ctx.to_device(host_tensor(std::vector<int32_t>(targets.begin(), targets.end()), {dims.rows}));
  const Tensor stats = ctx.empty({dims.rows, 2});
  CrossEntropyResult result{.loss = ctx.empty({1}),
                            .token_losses = ctx.empty({dims.rows}),
                            .correct = ctx.empty({dims.rows}, DType::kI32),
                            .counted = dims.counted};
  Forward::run(ctx, "softmax_cross_entropy", dims, logits.f32(), ids.data<int32_t>(),
               result.token_losses.f32(), result.correct.data<int32_t>(), stats.f32(),
               result.loss.f32());

  if (Tape* tape = ctx.tape()) {
    tape->record({logits}, result.loss, [=](Context& inner, const Tensor& dloss) -> Grads {
      Backward::run(inner, "softmax_cross_entropy", dims, ids.data<int32_t>(), stats.f32(),
                    dloss.f32(), logits.f32());
      return {logits};
    });
  }
  return result;
}

}  // namespace braid
