#include "braid/nn/mixers/lact.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/state_space_init.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/l2_norm/l2_norm.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

constexpr float kNormEps = 1e-5f;
// The published division is by |x| + 1e-5; here its square is under the root.
constexpr float kL2Eps = 1e-10f;

Initializer normal_over_sqrt(int64_t n) {
  return init_normal(1.0f / std::sqrt(static_cast<float>(n)));
}

}  // namespace

LactMixer::LactMixer(const SublayerConfig& config, SpecOptions& options) {
  const int64_t D = config.width;
  const int64_t H = options.integer("heads", std::max<int64_t>(1, D / 192), 1, 8192);
  if (D % (2 * H) != 0) options.refuse("heads", "a divisor of half the width");
  const int64_t d = D / H, F = options.integer("hidden", d, 1, 65536);
  lact_ = {.heads = H,
           .head_dim = d,
           .hidden = F,
           .chunk = options.integer("chunk", 2048, 1, 1 << 24),
           .momentum = options.flag("momentum", false),
           .muon = options.flag("muon", false)};
  silu_ = options.flag("silu", true);
  const double theta = options.number("theta", 500000.0, 0.0);
  rope_ = {
      .kind = theta > 0 ? RopeKind::kDefault : RopeKind::kNone, .theta = theta, .rotary_dim = d};
  const double lr = options.number("lr", 0.001, 1e-12, 1.0);

  qkv_ = Linear("qkv", D, 3 * D, false, init_fan_in(D));
  momentum_proj_ = Linear("momentum_proj", D, H, true, init_fan_in(D));
  o_proj_ = Linear("o_proj", D, D, false, init_fan_in(D));
  lr_weight_ = {.name = "lr_proj.weight",
                .shape = {3 * H, D},
                .matrix = true,
                .decay = true,
                .init = init_fan_in(D)};
  // softplus of it is lr
  lr_bias_ = {.name = "lr_proj.bias",
              .shape = {3 * H},
              .init = init_constant(static_cast<float>(std::log(std::expm1(lr))))};
  w0_ = {.name = "w0", .shape = {H, d, F}, .init = normal_over_sqrt(d)};
  w1_ = {.name = "w1", .shape = {H, F, d}, .init = normal_over_sqrt(F)};
  w2_ = {.name = "w2", .shape = {H, d, F}, .init = normal_over_sqrt(d)};
  norm_ = {.name = "ttt_norm.weight", .shape = {d}, .init = init_constant(1)};
}

LactInputs LactMixer::inputs(Context& ctx, const Tensor& x, Stream& stream) const {
  Tensor qkv = qkv_.forward(ctx, x);
  if (silu_) qkv = activation(ctx, qkv, Activation::kSilu);
  const int64_t D = x.dim(1), widths[] = {D, D, D};
  const auto parts = split_columns(ctx, qkv, widths);
  const RopeAngles& angles = stream.angles(ctx, rope_);
  const L2NormOptions unit{.heads = lact_.heads, .eps = kL2Eps};
  const Tensor lr = linear(ctx, x, lr_weight_.weight, lr_bias_.value);
  LactInputs in{.q = rope(ctx, l2_norm(ctx, parts[0], unit), lact_.heads, angles),
                .k = rope(ctx, l2_norm(ctx, parts[1], unit), lact_.heads, angles),
                .v = parts[2],
                .lr = activation(ctx, lr, Activation::kSoftplus),
                .momentum = {},
                .w0 = w0_.value,
                .w1 = w1_.value,
                .w2 = w2_.value};
  if (lact_.momentum) {
    in.momentum = activation(ctx, momentum_proj_.forward(ctx, x), Activation::kSigmoid);
  }
  return in;
}

Tensor LactMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                          const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const LactInputs in = inputs(ctx, x, stream);
  const Tensor o = through_slot(
      state, 0, [&](const Tensor& initial) { return lact(ctx, in, initial, batch, lact_); },
      [&](std::span<float* const> states) { return lact_in_place(ctx, in, states, batch, lact_); });
  const Tensor heads = reshape(ctx, o, {o.rows(), lact_.heads, lact_.head_dim});
  const Tensor normed = rms_norm(ctx, heads, norm_.value, kNormEps);
  return o_proj_.forward(ctx, reshape(ctx, normed, o.shape()));
}

StateSpec LactMixer::state_spec() const {
  return {{.name = "fast", .shape = {lact_.heads, lact_state_size(lact_)}}};
}

std::vector<Parameter*> LactMixer::parameters() {
  std::vector<Parameter*> out;
  qkv_.collect(out);
  out.insert(out.end(), {&lr_weight_, &lr_bias_});
  if (lact_.momentum) momentum_proj_.collect(out);
  out.insert(out.end(), {&w0_, &w1_, &w2_, &norm_});
  o_proj_.collect(out);
  return out;
}

double LactMixer::matmul_flops() const {
  double flops = qkv_.matmul_flops() + o_proj_.matmul_flops() +
                 2.0 * static_cast<double>(lr_weight_.shape.count());
  if (lact_.momentum) flops += momentum_proj_.matmul_flops();
  return flops;
}

}  // namespace braid
