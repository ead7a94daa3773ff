#include "braid/nn/mixers/short_conv_mixer.h"

#include <cmath>

#include "braid/ops/short_conv/short_conv.h"

namespace braid {

ShortConvMixer::ShortConvMixer(const SublayerConfig& config, SpecOptions& options)
    : has_bias_(options.flag("bias", true)) {
  const int64_t D = config.width, W = options.integer("conv", 4, 2, 16);
  const float bound = 1.0f / std::sqrt(static_cast<float>(W));
  weight_ = {.name = "conv.weight", .shape = {D, W}, .init = init_uniform(-bound, bound)};
  bias_ = {.name = "conv.bias", .shape = {D}, .init = init_uniform(-bound, bound)};
}

Tensor ShortConvMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  const Tensor bias = has_bias_ ? bias_.value : Tensor();
  return through_slot(
      state, 0,
      [&](const Tensor& initial) {
        return short_conv(ctx, x, weight_.value, bias, initial, stream.batch());
      },
      [&](std::span<float* const> tails) {
        return short_conv_in_place(ctx, x, weight_.value, bias, tails, stream.batch());
      });
}

StateSpec ShortConvMixer::state_spec() const {
  return {{.name = "conv", .shape = {weight_.shape[1] - 1, weight_.shape[0]}}};
}

std::vector<Parameter*> ShortConvMixer::parameters() {
  std::vector<Parameter*> out{&weight_};
  if (has_bias_) out.push_back(&bias_);
  return out;
}

}  // namespace braid
