#include "braid/nn/ffns/rwkv7_cmix.h"

#include <cmath>

#include "braid/nn/init.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/token_shift/token_shift.h"

namespace braid {

Rwkv7CmixFfn::Rwkv7CmixFfn(const SublayerConfig& config, SpecOptions& options)
    : width_(config.width) {
  const int64_t D = width_, F = options.integer("hidden", 4 * D);
  const double left = 1 - static_cast<double>(config.ordinal) / static_cast<double>(config.of_kind);
  mu_ = {.name = "x_k",
         .shape = {D},
         .init = [exponent = std::pow(left, 4)](std::span<float> values, const Rng&) {
           const auto width = static_cast<double>(values.size());
           for (size_t i = 0; i < values.size(); ++i) {
             values[i] = static_cast<float>(1 - std::pow(static_cast<double>(i) / width, exponent));
           }
         }};
  key_ = Linear("key", D, F, false, init_orthogonal(F, D, 1));
  value_ = Linear("value", F, D, false, init_constant(0));
}

Tensor Rwkv7CmixFfn::forward(Context& ctx, const Tensor& x, Stream& stream,
                             const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const Tensor mu[] = {mu_.value};
  const std::vector<Tensor> shifted = through_slot(
      state, 0, [&](const Tensor& initial) { return token_shift(ctx, x, mu, initial, batch); },
      [&](std::span<float* const> last) { return token_shift_in_place(ctx, x, mu, last, batch); });
  const Tensor h = activation(ctx, key_.forward(ctx, shifted[0]), Activation::kReluSquared);
  return value_.forward(ctx, h);
}

StateSpec Rwkv7CmixFfn::state_spec() const { return {{.name = "shift", .shape = {width_}}}; }

std::vector<Parameter*> Rwkv7CmixFfn::parameters() {
  std::vector<Parameter*> out{&mu_};
  key_.collect(out);
  value_.collect(out);
  return out;
}

double Rwkv7CmixFfn::matmul_flops() const { return key_.matmul_flops() + value_.matmul_flops(); }

}  // namespace braid
