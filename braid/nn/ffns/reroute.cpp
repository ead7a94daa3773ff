#include "braid/nn/ffns/reroute.h"

#include <cmath>

#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/route/route.h"
#include "braid/ops/selective_scan/selective_scan.h"

namespace braid {
namespace {

// b with softplus(b) = window^-(i / (r - 1)): memories from one token to `window`.
Initializer init_memories(double window) {
  return [window](std::span<float> values, const Rng&) {
    const auto last = static_cast<double>(values.size() - 1);
    for (size_t i = 0; i < values.size(); ++i) {
      const double step = std::pow(window, -static_cast<double>(i) / last);
      values[i] = static_cast<float>(step + std::log(-std::expm1(-step)));
    }
  };
}

}  // namespace

Reroute::Reroute(const SublayerConfig& config, int64_t experts, const RouteOptions& routing,
                 SpecOptions& options)
    : routing_(routing),
      margin_(static_cast<float>(options.number("reroute", 0, 0, 1e6))),
      norm_eps_(static_cast<float>(config.norm_eps)),
      channels_(options.integer("context", 32, 2, 65536)) {
  if (routing.kept_groups * (experts / routing.groups) == routing.top_k) {
    options.refuse("reroute", "more experts to choose among than a token chooses");
  }
  const double window = options.number("window", 64, 1, 1e9);
  context_ = Linear("context", config.width, channels_, false, projection_init(config.width));
  reroute_ = Linear("reroute", channels_, experts, false, init_constant(0));
  context_.weight().full_precision = reroute_.weight().full_precision = true;
  decay_ = {.name = "context_decay", .shape = {channels_}, .init = init_memories(window)};
}

Tensor Reroute::summary(Context& ctx, const Tensor& x, const SequenceBatch& batch,
                        const LayerState* state) const {
  const auto constant = [&](float value) {
    std::vector<float> values(static_cast<size_t>(channels_), value);
    return ctx.to_device(host_tensor(std::move(values), {channels_, 1}));
  };
  // The system of one state a channel that does not vary in time, with A = -1 and B = C = 1.
  const SelectiveScanInputs inputs{.x = context_.forward(ctx, x),
                                   .b = constant(1),
                                   .c = constant(1),
                                   .dt_bias = decay_.value,
                                   .a_log = constant(0)};
  return through_slot(
      state, 0, [&](const Tensor& initial) { return selective_scan(ctx, inputs, initial, batch); },
      [&](std::span<float* const> states) {
        return selective_scan_in_place(ctx, inputs, states, batch);
      });
}

Reroute::Decided Reroute::decide(Context& ctx, const Tensor& x, const Tensor& logits,
                                 const Tensor& selection_bias, const SequenceBatch& batch,
                                 const LayerState* state) const {
  const Tensor uncertain = route_uncertain(ctx, logits, selection_bias, margin_, routing_);
  const Tensor s = summary(ctx, x, batch, state);
  // (N, E). For all rows: gathering the uncertain ones costs more than 2 E r operations a token.
  const Tensor added = reroute_.forward(ctx, rms_norm(ctx, s, {}, norm_eps_));
  return {add(ctx, logits, scale_rows(ctx, added, uncertain)), uncertain};
}

StateSpec Reroute::state_spec() const { return {{.name = "context", .shape = {1, channels_}}}; }

void Reroute::collect(std::vector<Parameter*>& out) {
  context_.collect(out);
  out.push_back(&decay_);
  reroute_.collect(out);
}

double Reroute::matmul_flops() const { return context_.matmul_flops() + reroute_.matmul_flops(); }

}  // namespace braid
