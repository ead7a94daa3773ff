#include "braid/nn/mixers/linformer.h"

#include <algorithm>
#include <cmath>

namespace braid {

LinformerMixer::LinformerMixer(const SublayerConfig& config, SpecOptions& options, bool causal) {
  const int64_t D = config.width;
  if (causal) {
    length_ = options_.block = options.integer("block", kPageTokens, 8, kPageTokens);
    if (kPageTokens % length_ != 0) options.refuse("block", "8, 16, 32 or 64");
  } else {
    length_ = options.positional_integer("length", 1, int64_t{1} << 24);
  }
  options_.rank = options.integer("rank", causal ? 16 : 256, 1, 65536);
  options_.heads = options.integer("heads", std::max<int64_t>(1, D / 64));
  options_.kv_heads = options.integer("kv", options_.heads);
  if (D % options_.heads != 0) options.refuse("heads", "a divisor of the width");
  if (options_.heads % options_.kv_heads != 0) options.refuse("kv", "a divisor of heads");
  share_ = options.flag("share", false);
  const int64_t head = D / options_.heads;
  rope_.kind = RopeKind::kNone;
  if (causal) {
    if (options.text("rope", "default", {"default", "none"}) == "default") {
      rope_.kind = RopeKind::kDefault;
    }
    rope_.theta = options.number("theta", rope_.theta, 1.0);
    rope_.rotary_dim = head / 2 * 2;
  }
  kv_width_ = options_.kv_heads * head;
  to_q_ = Linear("to_q", D, D, false, projection_init(D));
  to_k_ = Linear("to_k", D, kv_width_, false, projection_init(D));
  to_v_ = Linear("to_v", D, kv_width_, false, projection_init(D));
  to_out_ = Linear("to_out", D, D, true, residual_init(D, config.count));
  const float bound = 1.0f / std::sqrt(static_cast<float>(options_.rank));
  proj_k_ = {
      .name = "proj_k", .shape = {length_, options_.rank}, .init = init_uniform(-bound, bound)};
  proj_v_ = proj_k_;
  proj_v_.name = "proj_v";
}

Tensor LinformerMixer::forward(Context& ctx, const Tensor& x, Stream& stream,
                               const LayerState* state) const {
  const SequenceBatch& batch = stream.batch();
  if (!causal()) {
    check(state == nullptr, "linformer: sees whole sequences, want no state");
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      check(batch.length(s) <= length_,
            "linformer: a sequence of {} tokens, want at most the length of {}", batch.length(s),
            length_);
    }
  }
  Tensor q = to_q_.forward(ctx, x), k = to_k_.forward(ctx, x);
  const Tensor v = to_v_.forward(ctx, x);
  if (causal()) {
    const RopeAngles& angles = stream.angles(ctx, rope_);
    q = rope(ctx, q, options_.heads, angles);
    k = rope(ctx, k, options_.kv_heads, angles);
  }
  return to_out_.forward(ctx, attend(ctx, q, k, v, batch, state));
}

Tensor LinformerMixer::attend(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                              const SequenceBatch& batch, const LayerState* state) const {
  if (state == nullptr) {
    const Tensor sk = linformer_summaries(ctx, k, e(), batch, options_.block);
    const Tensor sv = linformer_summaries(ctx, v, f(), batch, options_.block);
    const Tensor none;
    return linformer_attention(ctx, q, causal() ? k : none, causal() ? v : none, sk, sv, batch,
                               options_);
  }
  const std::vector<float*> blocks = state->fixed(0);
  const std::vector<PageTable> summaries = state->pages(1);
  std::vector<LinformerState> states;
  for (size_t s = 0; s < blocks.size(); ++s) {
    states.push_back({.blocks = blocks[s], .summaries = summaries[s]});
  }
  return linformer_attention(ctx, q, k, v, e(), f(), batch, options_, states);
}

StateSpec LinformerMixer::state_spec() const {
  if (!causal()) return {};
  return {{.name = "blocks", .shape = {2, options_.block, 2 * kv_width_}},
          {.name = "summaries",
           .kind = SlotKind::kGrowing,
           .shape = {linformer_page_floats(options_, 2 * kv_width_)}}};
}

std::vector<Parameter*> LinformerMixer::parameters() {
  std::vector<Parameter*> out;
  to_q_.collect(out);
  to_k_.collect(out);
  to_v_.collect(out);
  out.push_back(&proj_k_);
  if (!share_) out.push_back(&proj_v_);
  to_out_.collect(out);
  return out;
}

double LinformerMixer::matmul_flops() const {
  return to_q_.matmul_flops() + to_k_.matmul_flops() + to_v_.matmul_flops() +
         to_out_.matmul_flops();
}

}  // namespace braid
