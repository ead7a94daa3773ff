#include "braid/nn/mixers/attention.h"

#include <algorithm>

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

RopeOptions read_rope(SpecOptions& options, int64_t head_dim) {
  RopeOptions rope;
  rope.kind = rope_kind(options.text(
      "rope", "default", {"default", "none", "linear", "dynamic", "yarn", "llama3", "longrope"}));
  rope.theta = options.number("theta", rope.theta, 1.0);
  const double partial = options.number("partial", 1.0, 0.0, 1.0);
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial) / 2 * 2;
  rope.interleaved = options.flag("interleaved", false);
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
  return rope;
}

}  // namespace

AttentionMixer::AttentionMixer(const SublayerConfig& config, SpecOptions& options, bool windowed)
    : state_dtype_(config.state_dtype) {
  const int64_t D = config.width;
  if (windowed) attention_.window = options.positional_integer("window");
  attention_.heads = options.integer("heads", std::max<int64_t>(1, D / 64));
  attention_.kv_heads = options.integer("kv", attention_.heads);
  if (attention_.heads % attention_.kv_heads != 0) options.refuse("kv", "a divisor of heads");
  if (!options.has("dim") && D % attention_.heads != 0) {
    options.refuse("heads", "a divisor of the width, or dim as well");
  }
  head_dim_ = options.integer("dim", D / attention_.heads);
  if (head_dim_ % 8 != 0) options.refuse("dim", "a multiple of 8");
  attention_.scale = options.number("scale", 0, 1e-6, 1e6);
  rope_ = read_rope(options, head_dim_);
  const int64_t q = attention_.heads * head_dim_;
  const int64_t kv = attention_.kv_heads * head_dim_;
  qkv_proj_ = Linear("qkv_proj", D, q + 2 * kv, options.flag("bias", false), projection_init(D));
  o_proj_ = Linear("o_proj", q, D, options.flag("out_bias", false), residual_init(q, config.count));
  make_rope_table(rope_, 1);  // refuses impossible rotary options now
}

Tensor AttentionMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  const int64_t q_width = attention_.heads * head_dim_;
  const int64_t kv_width = attention_.kv_heads * head_dim_;
  const int64_t widths[] = {q_width, kv_width, kv_width};
  const std::vector<Tensor> qkv = split_columns(ctx, qkv_proj_.forward(ctx, x), widths);
  const RopeAngles& angles = stream.angles(ctx, rope_);
  const Tensor q = rope(ctx, qkv[0], attention_.heads, angles);
  const Tensor k = rope(ctx, qkv[1], attention_.kv_heads, angles);
  if (state == nullptr) {
    return o_proj_.forward(ctx, attention(ctx, q, k, qkv[2], stream.batch(), attention_));
  }
  const std::vector<PageTable> k_pages = state->pages(0), v_pages = state->pages(1);
  std::vector<KvCache> cache;
  for (size_t s = 0; s < k_pages.size(); ++s) {
    cache.push_back({.k = k_pages[s], .v = v_pages[s], .dtype = state_dtype_});
  }
  return o_proj_.forward(ctx, attention(ctx, q, k, qkv[2], stream.batch(), attention_, cache));
}

StateSpec AttentionMixer::state_spec() const {
  const Shape token{attention_.kv_heads * head_dim_};
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

std::vector<Parameter*> AttentionMixer::parameters() {
  std::vector<Parameter*> out;
  qkv_proj_.collect(out);
  o_proj_.collect(out);
  return out;
}

double AttentionMixer::matmul_flops() const {
  return qkv_proj_.matmul_flops() + o_proj_.matmul_flops();
}

}  // namespace braid
