// Ops of mixtures of experts.

#include <fmt/core.h>

#include <algorithm>

#include "bench/ops.h"
#include "braid/ops/route/cases.h"
#include "braid/ops/route/reference.h"
#include "braid/ops/route/route.h"

namespace braid::bench {

void route_cases(Context&, const Emit& emit) {
  for (const cases::Route& c : cases::kRouteBench) {
    const std::vector<Tensor> inputs = {random({c.tokens, c.experts}, 1)};
    const Tensor bias = c.bias ? random({c.experts}, 2, 0.3f) : Tensor();
    const int64_t checked = std::min(kCheckedRows, c.tokens);
    emit({.size = fmt::format("{} tokens, {} of {}", c.tokens, c.options.top_k, c.name),
          .inputs = inputs,
          .run =
              [c, bias](Context& ctx, const std::vector<Tensor>& in) {
                return route(ctx, in[0], bias, SequenceBatch::single(c.tokens), c.options).weights;
              },
          .reference =
              [c, inputs, bias, checked] {
                return reference::route(rows(inputs[0], 0, checked),
                                        bias.defined() ? all(bias) : std::vector<double>{},
                                        c.experts, c.options)
                    .weights;
              },
          .terms = c.experts,
          .bytes = bytes_of({c.tokens * (c.experts + 2 * c.options.top_k)}),
          .flops = 4.0 * static_cast<double>(c.tokens * c.experts)});
  }
}

}  // namespace braid::bench
