#include "braid/nn/mixers/s4d.h"

#include "braid/nn/mixers/state_space_init.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gelu/gelu.h"
#include "braid/ops/selective_scan/selective_scan.h"
#include "braid/ops/view/view.h"

namespace braid {

S4dMixer::S4dMixer(const SublayerConfig& config, SpecOptions& options) : width_(config.width) {
  const int64_t D = config.width;
  state_ = options.integer("state", 64, 1, 4096);
  glu_ = options.text("output", "glu", {"glu", "linear"}) == "glu";
  dt_bias_ = {.name = "dt_bias", .shape = {D}, .init = init_step_bias()};
  A_log_ = {.name = "A_log", .shape = {D, state_}, .init = init_s4d_real(state_)};
  B_ = {.name = "B", .shape = {D, state_}, .init = init_constant(1)};
  C_ = {.name = "C", .shape = {D, state_}, .init = init_normal(1)};
  D_ = {.name = "D", .shape = {D}, .init = init_normal(1)};
  output_ = Linear("output_linear", D, glu_ ? 2 * D : D, true, init_fan_in(D));
}

Tensor S4dMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                         const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const SelectiveScanInputs inputs{.x = x,
                                   .b = B_.value,
                                   .c = C_.value,
                                   .dt_bias = dt_bias_.value,
                                   .a_log = A_log_.value,
                                   .d = D_.value};
  const Tensor y = through_slot(
      state, 0, [&](const Tensor& initial) { return selective_scan(ctx, inputs, initial, batch); },
      [&](std::span<float* const> states) {
        return selective_scan_in_place(ctx, inputs, states, batch);
      });
  Tensor out = output_.forward(ctx, gelu(ctx, y));
  if (!glu_) return out;
  const int64_t halves[] = {width_, width_};
  const auto value_gate = split_columns(ctx, out, halves);
  return multiply(ctx, value_gate[0], activation(ctx, value_gate[1], Activation::kSigmoid));
}

StateSpec S4dMixer::state_spec() const { return {{.name = "ssm", .shape = {state_, width_}}}; }

std::vector<Parameter*> S4dMixer::parameters() {
  std::vector<Parameter*> out{&dt_bias_, &A_log_, &B_, &C_, &D_};
  output_.collect(out);
  return out;
}

double S4dMixer::matmul_flops() const { return output_.matmul_flops(); }

}  // namespace braid
