#include "braid/nn/mixers/mla.h"

#include <algorithm>
#include <cmath>

#include "braid/nn/mixers/attention_core.h"
#include "braid/ops/attention/attention.h"
#include "braid/ops/linear/linear.h"
#include "braid/ops/view/view.h"

namespace braid {
namespace {

// What stretched frequencies do to the scores: m^2.
double scale_of_stretch(const RopeOptions& rope) {
  const bool stretched = rope.kind != RopeKind::kDefault && rope.kind != RopeKind::kNone;
  if (!stretched || rope.factor <= 1) return 1;
  const double m = 0.1 * rope.mscale_all_dim * std::log(rope.factor) + 1;
  return m * m;
}

}  // namespace

MlaMixer::MlaMixer(const SublayerConfig& config, SpecOptions& options)
    : state_dtype_(config.state_dtype) {
  const int64_t D = config.width;
  const int64_t H = attention_.heads =
      options.integer("heads", std::max<int64_t>(1, D / 128), 1, 65536);
  q_rank_ = options.integer("q_rank", 0, 0, int64_t{1} << 20);
  kv_rank_ = options.integer("kv_rank", 512, 8, 1016);
  attention_.nope = options.integer("nope", 128, 8, 1016);
  rope_dim_ = options.integer("rope_dim", 64, 8, 1016);
  attention_.value = options.integer("value", 128, 8, 1024);
  for (const auto& [key, size] :
       {std::pair("kv_rank", kv_rank_), std::pair("nope", attention_.nope),
        std::pair("rope_dim", rope_dim_), std::pair("value", attention_.value)}) {
    if (size % 8 != 0) options.refuse(key, "a multiple of 8");
  }
  if (rope_dim_ + std::max(kv_rank_, attention_.nope) > 1024) {
    options.refuse("rope_dim", "at most 1024 with kv_rank or nope");
  }
  const double eps = options.number("eps", 1e-6, 0, 1);
  const bool bias = options.flag("bias", false);
  rope_ = read_rope(options, rope_dim_, /*interleaved=*/true);
  const double head_dim = static_cast<double>(attention_.nope + rope_dim_);
  attention_.scale =
      options.number("scale", scale_of_stretch(rope_) / std::sqrt(head_dim), 1e-6, 1e6);

  const int64_t q_width = H * (attention_.nope + rope_dim_);
  q_proj_ = Linear("q_proj", D, q_width, false, projection_init(D));
  if (q_rank_ > 0) {
    q_a_proj_ = Linear("q_a_proj", D, q_rank_, bias, projection_init(D));
    q_a_norm_ = Norm("q_a_layernorm", q_rank_, NormKind::kRms, eps);
    q_b_proj_ = Linear("q_b_proj", q_rank_, q_width, false, projection_init(q_rank_));
  }
  kv_a_proj_ = Linear("kv_a_proj_with_mqa", D, kv_rank_ + rope_dim_, bias, projection_init(D));
  kv_a_norm_ = Norm("kv_a_layernorm", kv_rank_, NormKind::kRms, eps);
  kv_b_proj_ = {.name = "kv_b_proj.weight",
                .shape = {H * (attention_.nope + attention_.value), kv_rank_},
                .matrix = true,
                .decay = true,
                .both_ways = true,
                .init = projection_init(kv_rank_)};
  const int64_t out = H * attention_.value;
  o_proj_ = Linear("o_proj", out, D, bias, residual_init(out, config.count));
}

Tensor MlaMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                         const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  const RopeAngles& angles = stream.angles(ctx, rope_);
  const Tensor q = queries(ctx, x, angles);
  const Latents at = latents(ctx, x, angles);
  const bool expand = state == nullptr && (ctx.tape() != nullptr || kv_b_proj_.weight.trainable() ||
                                           ctx.form() == Form::kParallel);
  return o_proj_.forward(ctx,
                         expand ? expanded(ctx, q, at, batch) : absorbed(ctx, q, at, batch, state));
}

Tensor MlaMixer::queries(Context& ctx, const Tensor& x, const RopeAngles& angles) const {
  Tensor q;
  if (q_rank_ == 0) {
    q = q_proj_.forward(ctx, x);
  } else {
    q = q_b_proj_.forward(ctx, q_a_norm_.forward(ctx, q_a_proj_.forward(ctx, x)));
  }
  return rope(ctx, q, attention_.heads, angles, attention_.nope);
}

MlaMixer::Latents MlaMixer::latents(Context& ctx, const Tensor& x, const RopeAngles& angles) const {
  const int64_t widths[] = {kv_rank_, rope_dim_};
  const std::vector<Tensor> c_r = split_columns(ctx, kv_a_proj_.forward(ctx, x), widths);
  return {.c = kv_a_norm_.forward(ctx, c_r[0]), .r = rope(ctx, c_r[1], 1, angles)};
}

Tensor MlaMixer::expanded(Context& ctx, const Tensor& q, const Latents& at,
                          const SequenceBatch& batch) const {
  const int64_t H = attention_.heads;
  std::vector<int64_t> widths;
  for (int64_t h = 0; h < H; ++h) {
    widths.insert(widths.end(), {attention_.nope, attention_.value});
  }
  const Tensor kv = linear(ctx, at.c, kv_b_proj_.weight);  // (N, H * (nope + value))
  const std::vector<Tensor> parts = split_columns(ctx, kv, widths);
  std::vector<Tensor> keys, values;
  for (size_t i = 0; i < parts.size(); i += 2) {
    keys.insert(keys.end(), {parts[i], at.r});
    values.push_back(parts[i + 1]);
  }
  return attention(ctx, q, concat_columns(ctx, keys), concat_columns(ctx, values), batch,
                   {.heads = H, .kv_heads = H, .scale = attention_.scale});
}

Tensor MlaMixer::absorbed(Context& ctx, const Tensor& q, const Latents& at,
                          const SequenceBatch& batch, const LayerState* state) const {
  const Tensor parts[] = {at.c, at.r};
  const Tensor latent = concat_columns(ctx, parts);  // (N, kv_rank + rope_dim)
  const Weight& kv_b = kv_b_proj_.weight;
  if (state == nullptr) return latent_attention(ctx, q, latent, kv_b, batch, attention_);
  std::vector<LatentCache> caches;
  for (const PageTable& pages : state->pages(0)) {
    caches.push_back({.pages = pages, .dtype = state_dtype_});
  }
  return latent_attention(ctx, q, latent, kv_b, batch, attention_, caches);
}

StateSpec MlaMixer::state_spec() const {
  return {{.name = "latent",
           .kind = SlotKind::kGrowing,
           .shape = {kv_rank_ + rope_dim_},
           .dtype = state_dtype_}};
}

std::vector<Parameter*> MlaMixer::parameters() {
  std::vector<Parameter*> out;
  if (q_rank_ == 0) {
    q_proj_.collect(out);
  } else {
    q_a_proj_.collect(out);
    q_a_norm_.collect(out);
    q_b_proj_.collect(out);
  }
  kv_a_proj_.collect(out);
  kv_a_norm_.collect(out);
  out.push_back(&kv_b_proj_);
  o_proj_.collect(out);
  return out;
}

double MlaMixer::matmul_flops() const {
  const double q =
      q_rank_ == 0 ? q_proj_.matmul_flops() : q_a_proj_.matmul_flops() + q_b_proj_.matmul_flops();
  const double kv_b = 2.0 * static_cast<double>(kv_b_proj_.shape.count());
  return q + kv_a_proj_.matmul_flops() + kv_b + o_proj_.matmul_flops();
}

}  // namespace braid
