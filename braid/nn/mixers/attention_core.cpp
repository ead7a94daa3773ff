#include "braid/nn/mixers/attention_core.h"

#include <algorithm>
#include <cmath>

#include "braid/ops/view/view.h"

namespace braid {
namespace {

RopeKind rope_kind(const std::string& name) {
  if (name == "none") return RopeKind::kNone;
  if (name == "linear") return RopeKind::kLinear;
  if (name == "dynamic") return RopeKind::kDynamic;
  if (name == "yarn") return RopeKind::kYarn;
  if (name == "llama3") return RopeKind::kLlama3;
  if (name == "longrope") return RopeKind::kLongRope;
  return RopeKind::kDefault;
}

}  // namespace

RopeOptions read_rope(SpecOptions& options, int64_t head_dim, bool interleaved) {
  RopeOptions rope;
  rope.kind = rope_kind(options.text(
      "rope", "default", {"default", "none", "linear", "dynamic", "yarn", "llama3", "longrope"}));
  rope.theta = options.number("theta", rope.theta, 1.0);
  const double partial = options.number("partial", 1.0, 0.0, 1.0);
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial) / 2 * 2;
  rope.interleaved = options.flag("interleaved", interleaved);
  rope.factor = options.number("factor", rope.kind == RopeKind::kLongRope ? 0.0 : 1.0, 0.0);
  rope.original_max = options.integer("original", 0);
  rope.max_position = options.integer("max", 0);
  rope.low_freq = options.number("low", rope.low_freq);
  rope.high_freq = options.number("high", rope.high_freq);
  rope.beta_fast = options.number("beta_fast", rope.beta_fast);
  rope.beta_slow = options.number("beta_slow", rope.beta_slow);
  rope.truncate = options.flag("truncate", rope.truncate);
  rope.mscale = options.number("mscale", 0.0);
  rope.mscale_all_dim = options.number("mscale_all_dim", 0.0);
  if (options.has("attention_factor")) {
    rope.attention_factor = options.number("attention_factor", 1.0);
  }
  rope.short_factor = options.numbers("short");
  rope.long_factor = options.numbers("long");
  make_rope_table(rope, 1);  // refuses what is impossible now
  return rope;
}

AttentionCore::AttentionCore(const SublayerConfig& config, SpecOptions& options,
                             const Options& defaults)
    : state_dtype_(config.state_dtype) {
  if (defaults.windowed) attention_.window = options.positional_integer("window");
  attention_.heads = options.integer("heads", std::max<int64_t>(1, config.width / 64));
  attention_.kv_heads = options.integer("kv", attention_.heads);
  if (attention_.heads % attention_.kv_heads != 0) options.refuse("kv", "a divisor of heads");
  if (!options.has("dim") && defaults.width % attention_.heads != 0) {
    options.refuse("heads", "a divisor of the width, or dim as well");
  }
  head_dim_ = options.integer("dim", defaults.width / attention_.heads);
  if (head_dim_ % 8 != 0) options.refuse("dim", "a multiple of 8");
  const double scale = 1.0 / std::sqrt(defaults.scale_per_dim * static_cast<double>(head_dim_));
  attention_.scale = options.number("scale", scale, 1e-6, 1e6);
  rope_ = read_rope(options, head_dim_);
}

std::vector<Tensor> AttentionCore::split(Context& ctx, const Tensor& qkv) const {
  const int64_t widths[] = {q_width(), kv_width(), kv_width()};
  return split_columns(ctx, qkv, widths);
}

Tensor AttentionCore::forward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                              Stream& stream, const LayerState* state) const {
  const RopeAngles& angles = stream.angles(ctx, rope_);
  const Tensor rotated_q = rope(ctx, q, attention_.heads, angles);
  const Tensor rotated_k = rope(ctx, k, attention_.kv_heads, angles);
  if (state == nullptr) {
    return attention(ctx, rotated_q, rotated_k, v, stream.batch(), attention_);
  }
  const std::vector<PageTable> k_pages = state->pages(0), v_pages = state->pages(1);
  std::vector<KvCache> cache;
  for (size_t s = 0; s < k_pages.size(); ++s) {
    cache.push_back({.k = k_pages[s], .v = v_pages[s], .dtype = state_dtype_});
  }
  return attention(ctx, rotated_q, rotated_k, v, stream.batch(), attention_, cache);
}

StateSpec AttentionCore::state_spec() const {
  const Shape token{kv_width()};
  const SlotKind kind = attention_.window > 0 ? SlotKind::kRing : SlotKind::kGrowing;
  return {{.name = "k",
           .kind = kind,
           .shape = token,
           .dtype = state_dtype_,
           .window = attention_.window},
          {.name = "v",
           .kind = kind,
           .shape = token,
           .dtype = state_dtype_,
           .window = attention_.window}};
}

}  // namespace braid
