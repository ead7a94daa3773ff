#include "braid/nn/mixers/linear_attn.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/linear_state.h"
#include "braid/ops/activation/activation.h"
#include "braid/ops/elementwise/elementwise.h"
#include "braid/ops/gated_rms_norm/gated_rms_norm.h"
#include "braid/ops/rms_norm/rms_norm.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

constexpr size_t kKvSlot = 0, kZSlot = 1;

// One block of at most `dim` orthonormal rows: Gram-Schmidt over Gaussian rows, twice, so that
// float32 keeps them orthogonal.
std::vector<std::vector<double>> orthonormal_rows(int64_t count, int64_t dim, const Rng& rng) {
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<double> row(static_cast<size_t>(dim));
    for (size_t d = 0; d < row.size(); ++d) row[d] = rng.normal(static_cast<uint64_t>(i * dim) + d);
    double square = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& other : rows) {
        double along = 0;
        for (size_t d = 0; d < row.size(); ++d) along += row[d] * other[d];
        for (size_t d = 0; d < row.size(); ++d) row[d] -= along * other[d];
      }
      square = 0;
      for (const double v : row) square += v * v;
      for (double& v : row) v /= std::sqrt(square);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

// Orthogonal directions in blocks of `dim`, each with the length of a Gaussian row of its own.
Initializer favor_projection_init(int64_t features, int64_t dim) {
  return [=](std::span<float> values, const Rng& rng) {
    const Rng lengths = rng.fork(0);
    size_t at = 0;
    for (int64_t first = 0; first < features; first += dim) {
      const Rng of_block = rng.fork(static_cast<uint64_t>(1 + first / dim));
      for (const auto& row : orthonormal_rows(std::min(dim, features - first), dim, of_block)) {
        double square = 0;
        for (size_t d = 0; d < row.size(); ++d) {
          const double v = lengths.normal(at + d);
          square += v * v;
        }
        for (const double v : row) values[at++] = static_cast<float>(v * std::sqrt(square));
      }
    }
  };
}

}  // namespace

void LinearAttnMixer::read_feature(SpecOptions& options) {
  const std::string name = options.text("feature", "elu1", {"elu1", "relu", "identity", "favor"});
  feature_ = name == "relu"       ? Feature::kRelu
             : name == "identity" ? Feature::kIdentity
             : name == "favor"    ? Feature::kFavor
                                  : Feature::kElu1;
  const bool positive = feature_ == Feature::kElu1 || feature_ == Feature::kFavor;
  normalise_ = options.flag("normalise", positive);
  if (normalise_ && feature_ == Feature::kIdentity) {
    options.refuse("normalise", "a feature that is not negative");
  }
  eps_ = static_cast<float>(options.number("eps", 1e-10));
  norm_ = options.flag("norm", !normalise_);
  gate_ = options.flag("gate", false);
  if (gate_ && !norm_) options.refuse("gate", "norm=1 as well");
  attention_.key_dim = dim_;
  if (feature_ != Feature::kFavor) return;
  const double usual = static_cast<double>(dim_) * std::log(static_cast<double>(dim_));
  const int64_t features =
      options.integer("features", std::max<int64_t>(1, static_cast<int64_t>(usual)), 1, 65536);
  attention_.key_dim = features;
  favor_ = {.heads = attention_.heads, .dim = dim_, .features = features};
  projection_ = {.name = "projection",
                 .shape = {features, dim_},
                 .frozen = true,
                 .init = favor_projection_init(features, dim_)};
}

LinearAttnMixer::LinearAttnMixer(const SublayerConfig& config, SpecOptions& options)
    : norm_eps_(static_cast<float>(config.norm_eps)) {
  const int64_t D = config.width;
  attention_.heads = options.integer("heads", std::max<int64_t>(1, D / 64), 1, 4096);
  if (!options.has("dim") && D % attention_.heads != 0) {
    options.refuse("heads", "a divisor of the width, or dim as well");
  }
  dim_ = options.integer("dim", D / attention_.heads, 1, 65536);
  attention_.value_dim = options.integer("value", dim_, 1, 65536);
  attention_.chunk = options.integer("chunk", 64, 1, 4096);
  read_feature(options);
  const int64_t keys = attention_.heads * dim_, inner = attention_.heads * attention_.value_dim;
  q_proj_ = Linear("q_proj", D, keys, false, projection_init(D));
  k_proj_ = Linear("k_proj", D, keys, false, projection_init(D));
  v_proj_ = Linear("v_proj", D, inner, false, projection_init(D));
  g_proj_ = Linear("g_proj", D, inner, false, projection_init(D));
  o_proj_ = Linear("o_proj", inner, D, false, residual_init(inner, config.count));
  norm_weight_ = {.name = "norm.weight", .shape = {attention_.value_dim}, .init = init_constant(1)};
}

// The features of queries and, but for favor, of keys.
Tensor LinearAttnMixer::map(Context& ctx, const Tensor& x) const {
  switch (feature_) {
    case Feature::kElu1:
      return activation(ctx, x, Activation::kEluPlusOne);
    case Feature::kRelu:
      return activation(ctx, x, Activation::kRelu);
    case Feature::kIdentity:
      return x;
    case Feature::kFavor:
      return favor_queries(ctx, x, projection_.value, favor_);
  }
  return x;
}

FavorKeys LinearAttnMixer::map_keys(Context& ctx, const Tensor& k, const SequenceBatch& batch,
                                    const LayerState* state) const {
  if (feature_ != Feature::kFavor) return {.features = map(ctx, k), .log_decay = {}, .maximum = {}};
  const size_t slot = normalise_ ? kZSlot + 1 : kZSlot;
  if (state == nullptr) return favor_keys(ctx, k, projection_.value, {}, batch, favor_);
  if (!state->has_tensors()) {
    return favor_keys_in_place(ctx, k, projection_.value, state->fixed(slot), batch, favor_);
  }
  FavorKeys keys = favor_keys(ctx, k, projection_.value, state->initial(slot), batch, favor_);
  state->set_last(slot, keys.maximum);
  return keys;
}

Tensor LinearAttnMixer::output(Context& ctx, const Tensor& x, const Tensor& o) const {
  if (!norm_) return o_proj_.forward(ctx, o);
  if (gate_) {
    return o_proj_.forward(
        ctx,
        gated_rms_norm(ctx, o, g_proj_.forward(ctx, x), norm_weight_.value,
                       {.groups = attention_.heads, .eps = norm_eps_, .norm_before_gate = true}));
  }
  const Tensor heads = reshape(ctx, o, {o.rows() * attention_.heads, attention_.value_dim});
  const Tensor normed = rms_norm(ctx, heads, norm_weight_.value, norm_eps_);
  return o_proj_.forward(ctx, reshape(ctx, normed, o.shape()));
}

Tensor LinearAttnMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                                const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const Tensor q = map(ctx, q_proj_.forward(ctx, x));
  const FavorKeys k = map_keys(ctx, k_proj_.forward(ctx, x), batch, state);
  const float key_scale = 1.0f / std::sqrt(static_cast<float>(dim_));
  LinearAttentionInputs inputs{.q = normalise_ ? q : scale(ctx, q, key_scale),
                               .k = k.features,
                               .v = v_proj_.forward(ctx, x),
                               .log_decay = k.log_decay};
  const Tensor o = linear_attention_through(ctx, inputs, state, kKvSlot, batch, attention_);
  if (!normalise_) return output(ctx, x, o);
  const std::vector<float> ones(static_cast<size_t>(x.rows() * attention_.heads), 1.0f);
  inputs.v = ctx.to_device(host_tensor(ones, {x.rows(), attention_.heads}));
  LinearAttentionOptions of_ones = attention_;
  of_ones.value_dim = 1;
  const Tensor n = linear_attention_through(ctx, inputs, state, kZSlot, batch, of_ones);
  return output(ctx, x, divide_heads(ctx, o, n, eps_));
}

StateSpec LinearAttnMixer::state_spec() const {
  const int64_t H = attention_.heads, K = attention_.key_dim;
  StateSpec spec{{.name = "kv", .shape = {H, attention_.value_dim, K}}};
  if (normalise_) spec.push_back({.name = "z", .shape = {H, 1, K}});
  if (feature_ == Feature::kFavor) spec.push_back({.name = "maximum", .shape = {H}});
  return spec;
}

std::vector<Parameter*> LinearAttnMixer::parameters() {
  std::vector<Parameter*> out;
  for (Linear* linear : {&q_proj_, &k_proj_, &v_proj_}) linear->collect(out);
  if (gate_) g_proj_.collect(out);
  if (norm_) out.push_back(&norm_weight_);
  if (feature_ == Feature::kFavor) out.push_back(&projection_);
  o_proj_.collect(out);
  return out;
}

double LinearAttnMixer::matmul_flops() const {
  double flops = 0;
  for (const Linear* linear : {&q_proj_, &k_proj_, &v_proj_, &o_proj_}) {
    flops += linear->matmul_flops();
  }
  return gate_ ? flops + g_proj_.matmul_flops() : flops;
}

}  // namespace braid
