#include "braid/ops/route/route.h"

#include <algorithm>
#include <cmath>

#include "braid/core/kernel.h"
#include "braid/ops/route/kernels.h"

namespace braid {
namespace {

using Forward = Kernel<&cpu::route>;
using Uncertain = Kernel<&cpu::route_uncertain>;
using Limit = Kernel<&cpu::route_limit>;
using Pressure = Kernel<&cpu::route_pressure>;
using Backward = Kernel<&cpu::route_vjp>;

// Fewer than four tokens an expert are never the limit.
constexpr double kLeastCapacity = 4;

void check_arguments(const Tensor& logits, const Tensor& bias, const RouteOptions& o) {
  check(logits.rank() == 2 && logits.dim(1) > 0 && logits.dtype() == DType::kF32,
        "route: logits are {} {}, want f32 (N, E)", to_string(logits.dtype()),
        to_string(logits.shape()));
  const int64_t E = logits.dim(1);
  check(!bias.defined() || (bias.shape() == Shape{E} && bias.dtype() == DType::kF32),
        "route: selection_bias is {} {}, want f32 ({})", to_string(bias.dtype()),
        to_string(bias.shape()), E);
  check(o.top_k > 0 && o.top_k <= E, "route: {} experts a token of {}, want from 1 to {}", o.top_k,
        E, E);
  check(o.groups > 0 && E % o.groups == 0,
        "route: {} groups of {} experts, want a number of groups that divides them", o.groups, E);
  check(o.kept_groups > 0 && o.kept_groups <= o.groups, "route: {} groups kept of {}, want 1 to {}",
        o.kept_groups, o.groups, o.groups);
  check(o.kept_groups * (E / o.groups) >= o.top_k,
        "route: {} groups of {} experts are kept, want at least the {} a token chooses",
        o.kept_groups, E / o.groups, o.top_k);
  check(std::isfinite(o.scale) && std::isfinite(o.capacity) && o.capacity >= 0,
        "route: scale {} and capacity {}, want finite numbers and no negative capacity", o.scale,
        o.capacity);
}

void check_finite(const Tensor& logits, const Tensor& bias, int64_t bad) {
  if (bias.defined()) {
    const float* b = bias.f32();
    const float* found =
        std::find_if(b, b + bias.count(), [](float v) { return !std::isfinite(v); });
    check(found == b + bias.count(), "route: selection_bias of expert {} is {}, want a finite one",
          found - b, found == b + bias.count() ? 0 : *found);
  }
  if (bad == logits.rows()) return;
  const float* row = logits.f32() + bad * logits.row_stride();
  const float* found =
      std::find_if(row, row + logits.dim(1), [](float v) { return !std::isfinite(v); });
  fail(ErrorKind::kUsage, "route: the logit of token {} for expert {} is {}, want a finite one",
       bad, found - row, *found);
}

// What the vjp needs. `chosen` is before any limit, `experts` after it.
struct Saved {
  RouteDims dims;
  std::vector<int64_t> offsets;
  Tensor logits, chosen, experts;
};

Tensor vjp(Context& ctx, const Saved& saved, const Tensor& dy) {
  const RouteDims& dims = saved.dims;
  const RouteSequences sequences{saved.offsets.data(), std::ssize(saved.offsets) - 1};
  const Tensor dweights = dy.contiguous() ? dy : ctx.to_device(dy);
  const Tensor scratch = ctx.empty({ctx.threads().size(), dims.scratch()});
  const Tensor dlogits = ctx.empty({dims.tokens, dims.experts});
  Tensor pressure;
  if (dims.options.balance_loss != 0 || dims.options.sequence_loss != 0) {
    pressure = ctx.empty({sequences.count, dims.experts});
    Pressure::run(ctx, "route", dims, sequences, saved.chosen.data<int32_t>(), pressure.f32());
  }
  Backward::run(ctx, "route", dims, sequences, saved.logits.f32(), saved.chosen.data<int32_t>(),
                saved.experts.data<int32_t>(), pressure.f32(), dweights.f32(), scratch.f32(),
                dlogits.f32());
  return dlogits;
}

}  // namespace

Routing route(Context& ctx, const Tensor& logits, const Tensor& selection_bias,
              const SequenceBatch& batch, const RouteOptions& options) {
  check_arguments(logits, selection_bias, options);
  check(batch.tokens() == logits.rows(), "route: a batch of {} tokens for {} rows of logits",
        batch.tokens(), logits.rows());
  const RouteDims dims{.tokens = logits.rows(),
                       .experts = logits.dim(1),
                       .stride = logits.row_stride(),
                       .options = options};
  const Shape slots{dims.tokens, dims.k()};
  Routing routing{.experts = ctx.empty(slots, DType::kI32),
                  .weights = ctx.empty(slots),
                  .load = ctx.empty({dims.experts}, DType::kI32)};
  const Tensor scratch = ctx.empty({ctx.threads().size(), dims.scratch()});
  int64_t bad = dims.tokens;
  Forward::run(ctx, "route", dims, logits.f32(), selection_bias.f32(), scratch.f32(),
               routing.experts.data<int32_t>(), routing.weights.f32(), routing.load.data<int32_t>(),
               &bad);
  check_finite(logits, selection_bias, bad);

  const Tensor chosen = routing.experts;
  if (options.capacity > 0) {
    const double share = static_cast<double>(dims.tokens * dims.k()) * options.capacity /
                         static_cast<double>(dims.experts);
    const Tensor taken = ctx.empty({dims.experts}, DType::kI32);
    routing.experts = ctx.empty(slots, DType::kI32);
    Limit::run(ctx, "route", dims, static_cast<int64_t>(std::max(kLeastCapacity, share)),
               chosen.data<int32_t>(), taken.data<int32_t>(), routing.experts.data<int32_t>(),
               routing.weights.f32());
  }
  if (Tape* tape = ctx.tape()) {
    const Saved saved{dims, batch.offsets, logits, chosen, routing.experts};
    tape->record({logits}, routing.weights, [saved](Context& inner, const Tensor& dy) -> Grads {
      return {vjp(inner, saved, dy)};
    });
  }
  return routing;
}

Tensor route_uncertain(Context& ctx, const Tensor& logits, const Tensor& selection_bias,
                       float margin, const RouteOptions& options) {
  check_arguments(logits, selection_bias, options);
  const int64_t E = logits.dim(1), k = options.top_k;
  check(options.kept_groups * (E / options.groups) > k,
        "route: {} groups of {} experts are kept, want more than the {} a token chooses",
        options.kept_groups, E / options.groups, k);
  check(std::isfinite(margin), "route: the margin is {}, want a finite one", margin);
  RouteDims dims{
      .tokens = logits.rows(), .experts = E, .stride = logits.row_stride(), .options = options};
  dims.options.top_k = k + 1;
  const Tensor uncertain = ctx.empty({dims.tokens});
  const Tensor scratch = ctx.empty({ctx.threads().size(), dims.scratch()});
  Uncertain::run(ctx, "route", dims, margin, logits.f32(), selection_bias.f32(), scratch.f32(),
                 uncertain.f32());
  return uncertain;
}

}  // namespace braid
